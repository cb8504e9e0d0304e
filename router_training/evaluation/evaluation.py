"""Scores a router on recorded outcomes, through the server's own `Router`: every number of `evaluation.json`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.errors import DatasetError, NoCapableExpert
from coe_server.routing.artifact import Artifact
from coe_server.routing.classifier import Temperature
from coe_server.routing.decision import GENERAL, Availability, RouteOptions, RoutingDecision
from coe_server.routing.router import Router
from router_training import Track
from router_training.data.dataset import Dataset, named_prompts
from router_training.data.embeddings import Prepare, nothing_to_embed
from router_training.evaluation import metrics
from router_training.evaluation.gains import (
    Judged,
    budget_gain,
    confusion,
    curve_keys,
    reliability,
    unlimited_gain,
    worst_prompts,
)
from router_training.evaluation.handover import Stage
from router_training.evaluation.handover_evidence import handover_rows
from router_training.evaluation.metrics import Bootstrap
from router_training.evaluation.robustness import robustness
from router_training.evaluation.worth import worth

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AT_REST = Availability(residency="disk", predicted_wait_seconds=0.0)
PERTURBED_PROMPTS = 1000  # drawn for the flip rate and robustness


@dataclass(frozen=True, slots=True)
class Decisions:
    """The router's decisions on n prompts.

    `chosen` expert [n]; `expected` scores [n, experts] as compared (corrections may push them slightly out of [0, 1];
    -inf: excluded); `probabilities` [n, categories]; `confidences`, `inside` the gate and `routing_ms`, each [n].
    `penalty` [n]: the multiplier of costs; `known` [n]: the categories decide.
    """

    chosen: Ints
    expected: Vector
    probabilities: Vector
    confidences: Vector
    inside: npt.NDArray[np.bool_]
    routing_ms: Vector
    penalty: Vector
    known: npt.NDArray[np.bool_]


def evaluate(
    artifact: Artifact,
    dataset: Dataset,
    bootstrap: Bootstrap,
    track: Track,
    prepare: Prepare = nothing_to_embed,
) -> dict[str, Any]:
    """The content of `evaluation.json`; unshipped objectives are measured too.

    `prepare` embeds the perturbed prompts of the flip rate; the prompts of `dataset` must be embedded already.
    Raises DatasetError where no prompt can measure.
    """
    if why := dataset.why_nothing_measures():
        raise DatasetError(why)
    complete = dataset.measures & (dataset.weights > 0.0)
    judged = Judged(dataset.rows(np.flatnonzero(complete)), np.array(artifact.manifest.costs()))
    router = Router(_all_shipped(artifact))
    decided = {name: decide(router, judged.dataset, name, track) for name in router.objectives}
    main = main_objective(artifact)
    decisions = decided[main]
    curve = metrics.risk_coverage(decisions.confidences, judged.taken(decisions.chosen), judged.weights)
    return {
        "n_prompts": len(judged.dataset),
        "n_incomplete": int(len(dataset) - len(judged.dataset)),
        **({"scored_by": judged.dataset.scored_by} if judged.dataset.scored_by else {}),
        "router_version": artifact.version,
        "cost_unit": artifact.manifest.cost_unit,
        "experts": dict(zip(dataset.experts, judged.expert_means.tolist(), strict=True)),
        "best_single": {"expert": dataset.experts[judged.best_single], "score": float(judged.expert_means.max())},
        "hull": [
            {"mean_active_params_b": cost, "score": score}
            for cost, score in zip(judged.hull.costs.tolist(), judged.hull.scores.tolist(), strict=True)
        ],
        "random": float(judged.expert_means.mean()),
        "oracle": metrics.mean(judged.outcomes.max(axis=1), judged.weights),
        "category_ceiling": metrics.category_ceiling(judged.outcomes, judged.dataset.labels, judged.weights),
        "router": {"objective": main, **_router_row(judged, decisions, bootstrap)},
        "by_budget": [
            _budget_row(judged, name, artifact, decided[name].chosen, bootstrap)
            for name, entry in artifact.manifest.objectives.items()
            if entry.budget is not None
        ],
        "worth": worth(judged, {name: one.chosen for name, one in decided.items()}, artifact.manifest, bootstrap),
        **curve_keys(judged, decisions.expected),
        "calibration": _calibration(judged, decisions, artifact),
        "risk_coverage": [{"coverage": coverage, "score": score} for coverage, score in curve],
        "leave_group_out": None,
        **_handover(judged, decided, artifact, bootstrap),
        **_robustness(router, judged, main, bootstrap.seed, track, prepare),
        "routing_ms": {
            "p50": float(np.percentile(decisions.routing_ms, 50)),
            "p99": float(np.percentile(decisions.routing_ms, 99)),
        },
        **_details(judged, decisions, artifact),
        "date": date.today().isoformat(),
    }


def _handover(
    judged: Judged, decided: dict[str, Decisions], artifact: Artifact, bootstrap: Bootstrap
) -> dict[str, Any]:
    """The key `handover`, where the artifact has one and these outcomes have log-probabilities."""
    said = judged.dataset.said
    if artifact.manifest.certainty is None or said is None or not said.recorded.any():
        return {}
    stages = {
        name: Stage.of(judged.dataset, one.expected, one.chosen, one.penalty, one.known, artifact.manifest.costs(name))
        for name, one in decided.items()
    }
    return {"handover": handover_rows(artifact.manifest, stages, bootstrap)}


def decide(router: Router, dataset: Dataset, objective: str, track: Track) -> Decisions:
    """Every prompt routed under one objective, with equal loading costs of all experts.

    Raises DatasetError naming prompts that no expert can take.
    """
    costs = router.artifact.manifest.costs(objective)
    column = {name: position for position, name in enumerate(dataset.experts)}
    expected = np.full((len(dataset), len(dataset.experts)), -np.inf)
    rows = _routed(router, dataset, objective, track)
    for at, decision in enumerate(rows):
        for ranked in decision.ranking:
            if ranked.excluded is None and ranked.value is not None:
                place = column[ranked.expert]
                expected[at, place] = ranked.value + decision.budget.multiplier * costs[place]
    return Decisions(
        chosen=np.array([column[row.expert] for row in rows], dtype=np.int64),
        expected=expected,
        probabilities=np.array([list(row.probabilities.values()) for row in rows]),
        confidences=np.array([row.confidence for row in rows], dtype=np.float64),
        inside=np.array([bool(row.gate.inside) for row in rows]),
        routing_ms=np.array([row.routing_ms for row in rows]),
        penalty=np.array([row.budget.multiplier for row in rows], dtype=np.float64),
        known=np.array([bool(row.gate.inside) and row.category != GENERAL for row in rows]),
    )


def _routed(router: Router, dataset: Dataset, objective: str, track: Track) -> list[RoutingDecision]:
    availability = dict.fromkeys(router.expert_names, AT_REST)
    options = RouteOptions(objective=objective)
    found: list[RoutingDecision] = []
    untaken: dict[str, str] = {}
    for name, conversation in zip(
        dataset.prompt_ids, track(dataset.conversations, f"routing for {objective}"), strict=True
    ):
        try:
            found.append(router.route(conversation, options, availability))
        except NoCapableExpert as error:
            untaken[name] = str(error)
    if untaken:
        why = next(iter(untaken.values()))
        raise DatasetError(f"{named_prompts(list(untaken))} cannot be answered under objective {objective!r}: {why}")
    return found


def _robustness(
    router: Router, judged: Judged, objective: str, seed: int, track: Track, prepare: Prepare
) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    sample = judged.dataset.rows(np.sort(generator.permutation(len(judged.dataset))[:PERTURBED_PROMPTS]))
    return robustness(lambda changed: decide(router, prepare(changed), objective, track).chosen, sample, generator)


def _all_shipped(artifact: Artifact) -> Artifact:
    """The same artifact with every objective served, so that those refused can be measured."""
    manifest = artifact.manifest
    shipped = {name: entry.model_copy(update={"shipped": True}) for name, entry in manifest.objectives.items()}
    return replace(artifact, manifest=manifest.model_copy(update={"objectives": shipped}))


def main_objective(artifact: Artifact) -> str:
    """`quality` if it exists, else the first objective without a budget, else the first."""
    objectives = artifact.manifest.objectives
    unlimited = [name for name, entry in objectives.items() if entry.budget is None]
    return next(iter([name for name in ("quality",) if name in objectives] + unlimited + list(objectives)))


def _router_row(judged: Judged, decisions: Decisions, bootstrap: Bootstrap) -> dict[str, Any]:
    return {
        **unlimited_gain(judged, decisions.chosen, bootstrap).as_json(),
        "mean_active_params_b": judged.mean_active_params_b(decisions.chosen),
        "routed_away": metrics.mean(1.0 * (decisions.chosen != judged.best_single), judged.weights),
        "ood_share": metrics.mean(np.where(decisions.inside, 0.0, 1.0), judged.weights),
    }


def _budget_row(
    judged: Judged, objective: str, artifact: Artifact, chosen: Ints, bootstrap: Bootstrap
) -> dict[str, Any]:
    entry = artifact.manifest.objectives[objective]
    judged = replace(judged, active_params_b=np.array(artifact.manifest.costs(objective)))
    return {
        "objective": objective,
        "cost_unit": entry.budget_unit,
        "budget_b": entry.budget,
        "mean_active_params_b": judged.mean_active_params_b(chosen),
        "zero_router_score": judged.hull.score_at(judged.mean_active_params_b(chosen)),
        **budget_gain(judged, chosen, bootstrap).as_json(),
    }


def _details(judged: Judged, decisions: Decisions, artifact: Artifact) -> dict[str, Any]:
    """The details of a report besides the headline."""
    categories = artifact.manifest.categories
    labels = _labels(judged, artifact)
    rows = np.flatnonzero(judged.dataset.labels >= 0)
    predicted = decisions.probabilities.argmax(axis=1)
    hits = (predicted == labels).astype(np.float64)
    return {
        "confusion": confusion(labels, predicted, judged.weights, len(categories)),
        "reliability": reliability(decisions.confidences[rows], hits[rows], judged.weights[rows]),
        "worst_prompts": worst_prompts(
            judged, decisions.chosen, np.clip(decisions.expected, 0.0, 1.0), decisions.probabilities, categories
        ),
    }


def _calibration(judged: Judged, decisions: Decisions, artifact: Artifact) -> dict[str, float | None]:
    """`ece` and `brier` of the likeliest category over labelled prompts (None without), before and after
    calibration, and `ece` of expected scores."""
    labels = _labels(judged, artifact)
    rows = np.flatnonzero(judged.dataset.labels >= 0)
    weights, probabilities = judged.weights[rows], decisions.probabilities[rows]
    hits = (probabilities.argmax(axis=1) == labels[rows]).astype(np.float64)
    before = _uncalibrated(artifact, judged.dataset.rows(rows))
    hits_before = (before.argmax(axis=1) == labels[rows]).astype(np.float64)
    promised = np.clip(decisions.expected[np.arange(len(decisions.chosen)), decisions.chosen], 0.0, 1.0)
    error = metrics.expected_calibration_error
    return {
        "ece": error(decisions.confidences[rows], hits, weights) if len(rows) else None,
        "brier": metrics.brier_score(probabilities, labels[rows], weights) if len(rows) else None,
        "ece_before": error(before.max(axis=1), hits_before, weights) if len(rows) else None,
        "brier_before": metrics.brier_score(before, labels[rows], weights) if len(rows) else None,
        "expected_score_ece": error(promised, judged.taken(decisions.chosen), judged.weights),
    }


def _labels(judged: Judged, artifact: Artifact) -> Ints:
    """[n]: the artifact's number of each prompt's true category; -1 where it has none or it is not the artifact's."""
    index = {name: position for position, name in enumerate(artifact.manifest.categories)}
    known = [index.get(name, -1) for name in judged.dataset.categories]
    return np.array([known[label] if label >= 0 else -1 for label in judged.dataset.labels], dtype=np.int64)


def _uncalibrated(artifact: Artifact, dataset: Dataset) -> Vector:
    """[n, categories]: the classifier's probabilities without calibration."""
    plain = replace(artifact.classifier, calibration=Temperature())
    rows = [plain.probabilities(artifact.features.vector(talk.turns)) for talk in dataset.conversations]
    return np.array(rows).reshape(len(rows), len(artifact.manifest.categories))
