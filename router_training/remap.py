"""remap(): solves an artifact's step two again for new budgets, limits or experts; output of `map`.

Step one stays: its out-of-fold predictions in the artifact stand for the traffic. Gains can only be measured with
prompts and outcomes of every expert; without them an objective is marked as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from coe_server.errors import ArtifactError, ConfigError
from coe_server.routing import artifact as artifacts
from coe_server.routing import artifact_checks
from coe_server.routing.artifact import Artifact, HeldOut
from coe_server.routing.classifier import normalised_entropy
from coe_server.routing.decision import GENERAL
from coe_server.routing.manifest import Manifest, ObjectiveEntry
from coe_server.system.files import require_writable_folder
from router_training import Track
from router_training.assignment.objectives import Budget, Grounds, Limits, decided, front_points, solve_objective
from router_training.config import category_without_experts
from router_training.data.dataset import Dataset, read_dataset
from router_training.data.embeddings import Prepare, nothing_to_embed
from router_training.data.provenance import ALONE
from router_training.data.trained_on import prompts_trained_on
from router_training.evaluation.as_saved import as_saved
from router_training.evaluation.evaluation import evaluate
from router_training.evaluation.gains import refusal
from router_training.evaluation.metrics import Bootstrap
from router_training.evaluation.summary import show_worth
from router_training.feedback import Rated, with_feedback
from router_training.map_options import MapOptions
from router_training.probes import carry_over, held_out_with, with_new_experts
from router_training.report.page import NothingToReport, write_report

Vector = npt.NDArray[np.float64]

ROUNDING = 1e-3  # of a multiplier fitted on predictions kept in half precision


def remap(folder: Path, out: Path, options: MapOptions, track: Track, prepare: Prepare = nothing_to_embed) -> Artifact:
    """The artifact in `folder` with every objective solved again, as written to `out` and read back.

    `prepare` embeds prompts where the artifact's features are embeddings.
    Raises ConfigError, ArtifactError or DatasetError with one sentence; nothing half-written is left.
    """
    if folder.resolve() == out.resolve():
        raise ArtifactError(f"{out} is the artifact itself; write the new one to another folder")
    artifacts.require_free(out)
    require_writable_folder("--out", out.parent)
    before = artifacts.load(folder)
    held_out = held_out_with(artifacts.read_held_out(folder), len(options.new_experts))
    dataset = _recorded(before, options, prepare)
    rated = with_feedback(before, options.feedback) if options.feedback is not None else Rated(before, 0, 0)
    learned = with_new_experts(rated.artifact, options.new_experts, dataset, track)
    _require_known_names(learned, options.limits)
    after = _solved(learned, held_out, options, track)
    solved: dict[str, Any] = {"from": before.version}
    if rated.given:
        solved["ratings"] = {"used": rated.used, "given": rated.given}
    if dataset is None or dataset.why_nothing_measures():
        earlier = _evaluation_before(folder, before, after, solved)
        artifacts.save(after, held_out, earlier, out, partial(_finish, before=folder))
        return artifacts.load(out)
    bootstrap = Bootstrap(options.resamples, before.manifest.seed)
    measured = evaluate(as_saved(after, held_out, out.parent), dataset, bootstrap, track, prepare)
    measured["re_solved"] = {**solved, "measured": True}
    measured["n_trained_on"] = prompts_trained_on(folder, before, dataset)
    artifacts.save(_judged(after, measured), held_out, measured, out, partial(_finish, before=folder))
    return artifacts.load(out)


def _finish(folder: Path, before: Path) -> None:
    """Write the probes and, if there is an evaluation, the report."""
    carry_over(before, folder)
    with suppress(NothingToReport):
        write_report(folder)


def chosen_shares(folder: Path) -> dict[str, dict[str, float]]:
    """objective -> expert -> its share of out-of-fold prompts, of the artifact in `folder`.

    The decisions are those of the objective's mean cost: under soft mixing they differ from the mapping.
    """
    manifest, held_out = artifacts.load(folder).manifest, artifacts.read_held_out(folder)
    grounds = _grounds(manifest, held_out, Limits())
    shares = {}
    for name, entry in manifest.objectives.items():
        chosen = decided(entry, grounds, np.array(manifest.costs(name)))
        traffic = np.bincount(chosen, grounds.weights, len(grounds.experts)) / grounds.weights.sum()
        shares[name] = dict(zip(grounds.experts, traffic.tolist(), strict=True))
    return shares


def _recorded(before: Artifact, options: MapOptions, prepare: Prepare) -> Dataset | None:
    if options.new_experts and not (options.prompts and options.outcomes):
        names = ", ".join(expert.name for expert in options.new_experts)
        raise ConfigError(f"a new expert needs recorded outcomes: give --prompts and --outcomes of {names}")
    if not options.prompts or not options.outcomes:
        return None
    experts = (*before.expert_names, *(expert.name for expert in options.new_experts))
    return prepare(read_dataset(options.prompts, options.outcomes, experts))


def _solved(before: Artifact, held_out: HeldOut, options: MapOptions, track: Track) -> Artifact:
    """Every old and new objective, solved on the artifact's out-of-fold predictions."""
    manifest = before.manifest
    grounds = _grounds(manifest, held_out, options.limits)
    if impossible := category_without_experts(grounds.limits.pins, grounds.limits.bans, grounds.experts):
        raise ConfigError(impossible)
    budgets = {name: Budget(e.budget, e.budget_unit or manifest.cost_unit) for name, e in manifest.objectives.items()}
    budgets |= {name: Budget(amount, manifest.cost_unit) for name, amount in options.budgets.items()}
    same_rules = (grounds.limits.pins, grounds.limits.bans) == (manifest.pins, manifest.bans)
    objectives = {}
    for name, budget in track(list(budgets.items()), "solving"):
        costs = _costs(manifest, budget)
        if budget.amount is not None and budget.amount < costs.min():
            raise ConfigError(f"objective {name}: {budget.amount:g} is below the cheapest expert's {costs.min():g}")
        fresh = solve_objective(name, budget, costs, grounds)
        objectives[name] = _with_verdict(fresh, manifest.objectives.get(name), same_rules)
    pins, bans = dict(grounds.limits.pins), {name: list(banned) for name, banned in grounds.limits.bans.items()}
    update = {
        "objectives": objectives,
        "front": front_points(grounds, _costs(manifest, Budget(None, manifest.cost_unit))),
        "pins": pins,
        "bans": bans,
    }
    mapping = {name: entry.mapping | _changed_by_hand(before, name) for name, entry in objectives.items()}
    return replace(before, manifest=manifest.model_copy(update=update), mapping=mapping)


def _grounds(manifest: Manifest, held_out: HeldOut, limits: Limits) -> Grounds:
    names = [expert.name for expert in manifest.experts]
    table = [*(manifest.score[category] for category in manifest.categories), manifest.overall]
    scores = np.array([[row[name].score for name in names] for row in table])
    probabilities = held_out.probabilities.astype(np.float64)
    sure = probabilities.max(axis=1) >= manifest.thresholds.min_confidence
    sure &= normalised_entropy(probabilities) <= manifest.thresholds.max_entropy
    trust = np.where(sure, held_out.trust, 0.0).astype(np.float64)[:, np.newaxis]
    mixed = probabilities @ scores[:-1] + held_out.corrections
    return Grounds(
        categories=tuple(manifest.categories),
        experts=tuple(names),
        scores=scores,
        rows=np.where(held_out.trust > 0.0, probabilities.argmax(axis=1), len(manifest.categories)),
        expected=scores[-1] + trust * (mixed - scores[-1]),
        weights=held_out.weights.astype(np.float64),
        factors=held_out.factors.astype(np.float64),
        total_params_b=np.array([expert.total_params_b for expert in manifest.experts]),
        limits=Limits(
            limits.hosted_params_b,
            limits.max_experts,
            {**manifest.pins, **limits.pins},
            {c: [*manifest.bans.get(c, ()), *limits.bans.get(c, ())] for c in {**manifest.bans, **limits.bans}},
        ),
        soft=manifest.mode == "soft",
    )


def _costs(manifest: Manifest, budget: Budget) -> Vector:
    for expert in manifest.experts:
        if getattr(expert, budget.unit) is None:
            raise ConfigError(f"expert {expert.name} has no {budget.unit}, which an objective counts")
    return np.array([getattr(expert, budget.unit) for expert in manifest.experts])


def _with_verdict(fresh: ObjectiveEntry, before: ObjectiveEntry | None, same_rules: bool) -> ObjectiveEntry:
    """The new objective with its verdict.

    An unchanged objective keeps its entry and a refused one its refusal. A new one is served and marked as not
    measured.
    """
    if before is None:
        return fresh.model_copy(update={"measured": False})
    same = same_rules and fresh.experts == before.experts and fresh.mapping == before.mapping
    if same and math.isclose(fresh.multiplier, before.multiplier, rel_tol=ROUNDING):
        return before
    verdict = {"shipped": before.shipped, "refusal": before.refusal, "forced": before.forced}
    return fresh.model_copy(update={**verdict, "measured": False})


def _changed_by_hand(before: Artifact, objective: str) -> dict[str, str]:
    entry = before.manifest.objectives.get(objective)
    if entry is None:
        return {}
    return {c: expert for c, expert in before.mapping[objective].items() if entry.mapping[c] != expert}


def _judged(after: Artifact, measured: dict[str, Any]) -> Artifact:
    """Every objective with the verdict of these prompts. Harm on groups left out of training is not measured."""
    rows = {row["objective"]: row for row in measured["by_budget"]}
    objectives = {}
    for name, entry in after.manifest.objectives.items():
        low = rows.get(name, measured["router"])["gain_ci95"][0]
        why = entry.refusal if entry.measured else refusal(low, None, entry.budget is not None, 0.0)
        why = why or ALONE.get(measured.get("scored_by", ""))
        verdict = {"shipped": why is None, "refusal": why, "forced": None}
        objectives[name] = entry.model_copy(update={**verdict, "measured": True})
    return replace(after, manifest=after.manifest.model_copy(update={"objectives": objectives}))


def _evaluation_before(folder: Path, before: Artifact, after: Artifact, solved: Mapping[str, Any]) -> dict[str, Any]:
    """The earlier evaluation, marked as measured before the mapping changed."""
    open_ones = [name for name, entry in after.manifest.objectives.items() if not entry.measured]
    mark = {"re_solved": {**solved, "measured": False, "objectives_not_measured": open_ones}}
    return {**(artifact_checks.read_evaluation(folder, before.manifest) or {}), **mark}


def _require_known_names(artifact: Artifact, limits: Limits) -> None:
    """Raises ConfigError if a pin or ban names an unknown category or expert."""
    pairs = [*limits.pins.items(), *((c, one) for c, banned in limits.bans.items() for one in banned)]
    categories = (*artifact.manifest.categories, GENERAL)
    for category, expert in pairs:
        for name, known in ((category, categories), (expert, artifact.expert_names)):
            if name not in known:
                raise ConfigError(f"pin or ban {category}={expert}: {name!r} is none of {', '.join(known)}")


WIDTH_OF_A_FILE = 160
NO_GAP = 1e-9  # rounding


def print_worth(folder: Path) -> None:
    """Print how many ratings were used, and what the router is worth if it was measured since."""
    evaluation = artifact_checks.read_evaluation(folder, artifact_checks.read_manifest(folder)) or {}
    solved = evaluation["re_solved"]
    if ratings := solved.get("ratings"):
        used, given = ratings["used"], ratings["given"]
        others = "; the others are of experts or categories that this artifact does not have" if used < given else ""
        Console().print(f"ratings: {used} of {given} used{others}", markup=False, highlight=False, soft_wrap=True)
    if solved["measured"]:
        show_worth(evaluation, Console())


def print_table(artifact: Artifact, shares: Mapping[str, Mapping[str, float]]) -> None:
    """Print a line for each objective; `shares` has each expert's share of its prompts."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    manifest = artifact.manifest
    table = Table("objective", "budget", "mean cost", "score", "gap", "experts", "served")
    for name, entry in manifest.objectives.items():
        refused = "no" if entry.refusal is None else f"no: {entry.refusal}"
        served = "yes" if entry.forced is None else f"forced: {entry.forced}"
        mark = "" if entry.measured else ", not measured"
        table.add_row(
            name,
            "-" if entry.budget is None else f"{entry.budget:g}",
            f"{entry.expected_active_params_b:.4g}",
            f"{100 * entry.expected_score:.2f}",
            f"{100 * entry.gap:.2g} %" if entry.gap > NO_GAP else "0",
            _shares(shares[name]),
            (served if entry.shipped else refused) + mark,
        )
    unit = "billions of active parameters" if manifest.cost_unit == "active_params_b" else "price per million tokens"
    table.caption = (
        f"budget and mean cost in {unit} per prompt; mean cost, score and shares as expected on unseen prompts"
    )
    console.print(table)


def _shares(shares: Mapping[str, float]) -> str:
    """Experts with their shares, largest first; without those that get no prompts."""
    given = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {_percent(share)}" for name, share in given if share > 0.0)


def _percent(share: float) -> str:
    return "<1 %" if share < 0.01 else f"{share:.0%}".replace("%", " %")
