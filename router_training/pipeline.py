"""fit(): the story of a training run, from recorded outcomes to an artifact that earned its place."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from coe_server.errors import DatasetError
from coe_server.routing import artifact as artifacts
from coe_server.routing.artifact import Artifact, HeldOut
from coe_server.routing.calibration import Calibration, Temperature
from coe_server.routing.corrections import Corrections
from coe_server.routing.manifest import ClassifierEntry, ExpertEntry, Manifest, Thresholds
from router_training.classifier import StepOne, calibrated, fit_step_one, vectorised
from router_training.config import TrainingConfig
from router_training.corrections import fitted_corrections, residuals
from router_training.dataset import Dataset, content_hash, read_dataset, split
from router_training.dataset_check import duplicate_report
from router_training.discovery import with_categories
from router_training.embeddings import feature_entry, served, with_embeddings
from router_training.evaluation import evaluate, main_objective
from router_training.gains import Judged
from router_training.metrics import Bootstrap
from router_training.near_duplicates import with_near_duplicates
from router_training.objectives import front_points, require_categories, score_entries, solve_objectives
from router_training.probes import write_own_and_chosen
from router_training.progress import Track
from router_training.rehearsal import Rehearsal, rehearse
from router_training.report.page import with_texts, write_report
from router_training.selection import with_named_classifier
from router_training.shipping import Foreign, foreign_gain, leave_group_out, refusal
from router_training.vectors import Matrix, count_ngrams

HELD_OUT_PROMPTS = 20_000  # kept in the artifact for re-solving its mapping


@dataclass(frozen=True, slots=True)
class FitResult:
    """Where the artifact lies, its evaluation, and objective -> why it is not shipped (None: shipped)."""

    folder: Path
    evaluation: dict[str, Any]
    refusals: dict[str, str | None]

    @property
    def shipped(self) -> bool:
        return any(reason is None for reason in self.refusals.values())


@dataclass(frozen=True, slots=True)
class Learned:
    """An artifact not judged yet, the out-of-fold predictions that go with it, and how it does abroad."""

    draft: Artifact
    kept: HeldOut
    foreign: Foreign | None


def fit(config: TrainingConfig, out: Path, force: bool, track: Track) -> FitResult:
    """Trains a router, measures it as saved, and writes it to `out`, or to `out`.refused if nothing earns its place.

    Raises ConfigError, DatasetError or ArtifactError with one sentence; nothing half-written is left.
    """
    refused = out.with_name(out.name + ".refused")
    for place in (out, refused):
        artifacts.require_free(place)
    data = config.data
    dataset = read_dataset(data.prompts, data.outcomes, config.expert_names, data.label)
    prepare = partial(with_embeddings, settings=config.features, track=track)
    dataset = with_near_duplicates(prepare(dataset), track)
    sides = split(dataset, data.held_out_share, config.seed, data.split_by)
    training, held_out = with_categories(sides.training, config, track), sides.held_out
    _require_enough(training, held_out, config)
    require_categories(training, config)
    learned = _learn(training, config, track)
    bootstrap = _bootstrap(config)
    evaluation = evaluate(_as_saved(learned, out.parent), held_out, bootstrap, track, prepare)
    evaluation["leave_group_out"] = _leave_group_out(learned, bootstrap)
    evaluation["near_duplicates"] = duplicate_report(dataset, sides).as_json()
    refusals = _refusals(learned, evaluation, config)
    if force:
        refusals = dict.fromkeys(refusals)
    folder = refused if all(refusals.values()) else out
    if config.report.texts:
        evaluation = with_texts(evaluation, held_out)
    finish = partial(_finish, held_out=held_out, config=config)
    artifacts.save(_marked(learned.draft, refusals, evaluation), learned.kept, evaluation, folder, finish)
    return FitResult(folder, evaluation, refusals)


def _finish(folder: Path, held_out: Dataset, config: TrainingConfig) -> None:
    """What a person looks at: probes and the report."""
    texts = held_out if config.report.texts else None
    write_own_and_chosen(folder, config.probes.own, texts, config.probes.per_category)
    write_report(folder)


def _learn(training: Dataset, config: TrainingConfig, track: Track) -> Learned:
    """Step one on all training prompts; everything that depends on unseen ones from the rehearsal."""
    counts = count_ngrams(track(training.conversations, "counting n-grams"), config.features.bucket_bits)
    config = with_named_classifier(counts, training, config, track)
    rehearsal = rehearse(counts, training, config, track)
    (step_one,) = [fit_step_one(counts, training, config) for _ in track([None], "fitting on all prompts")]
    step_one = calibrated(step_one, rehearsal.calibration, rehearsal.ramp.threshold)
    manifest = _manifest(training, rehearsal, step_one, config)
    mapping = {name: dict(entry.mapping) for name, entry in manifest.objectives.items()}
    features = served(step_one.features, config.features)
    corrections = _corrections(counts, training, rehearsal, step_one)
    draft = Artifact(manifest, features, step_one.classifier, step_one.gate, mapping, corrections)
    return Learned(draft, _kept(training, rehearsal, config.seed), _foreign(training, rehearsal, config))


def _corrections(counts: Matrix, training: Dataset, rehearsal: Rehearsal, step_one: StepOne) -> Corrections | None:
    """Of all training prompts, as far as unseen ones have shown that corrections help."""
    if rehearsal.correction_share == 0.0:
        return None
    left = residuals(training.scores, rehearsal.probabilities @ rehearsal.table.scores)
    fitted = fitted_corrections(vectorised(counts, training, step_one.features), left, training.weights)
    return Corrections((rehearsal.correction_share * fitted.coefficients).astype(np.float32))


def _as_saved(learned: Learned, beside: Path) -> Artifact:
    """The artifact written to a temporary folder and read back, with every check that the server makes."""
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".fit.") as workplace:
        folder = Path(workplace) / "draft"
        artifacts.save(learned.draft, learned.kept, None, folder)
        return artifacts.load(folder)


def _leave_group_out(learned: Learned, bootstrap: Bootstrap) -> dict[str, Any] | None:
    if learned.foreign is None:
        return None
    objective = learned.draft.manifest.objectives[main_objective(learned.draft)]
    return leave_group_out(learned.foreign, objective, bootstrap)


def _refusals(learned: Learned, evaluation: dict[str, Any], config: TrainingConfig) -> dict[str, str | None]:
    """objective -> why it is not shipped, or None. Objectives without a budget are all the same router."""
    by_budget = {row["objective"]: row for row in evaluation["by_budget"]}
    refusals: dict[str, str | None] = {}
    for name, entry in learned.draft.manifest.objectives.items():
        low = by_budget.get(name, evaluation["router"])["gain_ci95"][0]
        costs = learned.draft.manifest.costs(name)
        outside = foreign_gain(learned.foreign.priced(costs), entry) if learned.foreign else None
        refusals[name] = refusal(low, outside, entry.budget is not None, config.shipping.harm_limit)
    return refusals


def _manifest(training: Dataset, rehearsal: Rehearsal, step_one: StepOne, config: TrainingConfig) -> Manifest:
    by_category, overall = score_entries(training, rehearsal.table)
    return Manifest(
        features=feature_entry(step_one.features, config.features),
        categories=list(training.categories),
        classifier=ClassifierEntry(
            kind=config.classifier.named_kind,
            calibration=config.classifier.calibration,
            neighbours=config.classifier.neighbours,
        ),
        temperature=_temperature(rehearsal.calibration),
        prototypes=step_one.gate.prototypes,
        neighbours=config.gate.neighbours,
        thresholds=Thresholds(
            gate=rehearsal.ramp.threshold,
            full_trust=rehearsal.ramp.full_trust,
            min_confidence=config.classifier.min_confidence,
            max_entropy=rehearsal.max_entropy,
        ),
        mode=config.mapping.mode,
        corrections=rehearsal.correction_share > 0.0,
        z=config.mapping.z if config.mapping.scores == "lower_bound" else 0.0,
        experts=[
            ExpertEntry(
                name=expert.name,
                active_params_b=expert.active_params_b,
                total_params_b=expert.hosted_params_b,
                price_per_million_tokens=expert.price_per_million_tokens,
                context_tokens=expert.context_tokens,
                vision=expert.vision,
                tools=expert.tools,
            )
            for expert in config.experts
        ],
        score=by_category,
        overall=overall,
        objectives=solve_objectives(training, rehearsal, config),
        pins=config.mapping.pins,
        bans=config.mapping.bans,
        front=front_points(training, rehearsal, config),
        seed=config.seed,
        data_hash=content_hash([*config.data.prompts, *config.data.outcomes]),
        prompts=len(training),
        versions={name: version(name) for name in ("coe-server", "numpy", "scikit-learn", "scipy")},
    )


def _temperature(calibration: Calibration) -> float:
    return calibration.temperature if isinstance(calibration, Temperature) else 1.0


def _kept(training: Dataset, rehearsal: Rehearsal, seed: int) -> HeldOut:
    """Out-of-fold predictions of at most `HELD_OUT_PROMPTS` prompts, drawn at random."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(training))[:HELD_OUT_PROMPTS])
    return HeldOut(
        probabilities=rehearsal.probabilities[chosen].astype(np.float32),
        corrections=rehearsal.corrections[chosen].astype(np.float32),
        trust=rehearsal.trust[chosen].astype(np.float32),
        weights=training.weights[chosen].astype(np.float32),
    )


def _foreign(training: Dataset, rehearsal: Rehearsal, config: TrainingConfig) -> Foreign | None:
    """Training prompts with all outcomes, and what the router expects of them when their groups are unseen."""
    foreign = rehearsal.foreign
    if foreign is None:
        return None
    complete = np.flatnonzero(training.has_all_outcomes & (training.weights > 0.0))
    sizes = np.array(config.costs(config.cost_unit))
    return Foreign(
        Judged(training.rows(complete), sizes), foreign.expected[complete], foreign.attempts.overall[complete]
    )


def _marked(draft: Artifact, refusals: Mapping[str, str | None], evaluation: dict[str, Any]) -> Artifact:
    """The artifact with the verdict on each objective and the evaluation's headline."""
    manifest = draft.manifest
    objectives = {
        name: entry.model_copy(update={"shipped": refusals[name] is None, "refusal": refusals[name]})
        for name, entry in manifest.objectives.items()
    }
    router, outside = evaluation["router"], evaluation["leave_group_out"]
    headline = {
        "score": router["score"],
        "best_single": evaluation["best_single"]["score"],
        "gain": router["gain"],
        "mean_active_params_b": router["mean_active_params_b"],
        "leave_group_out_gain": outside and outside["gain"],
    }
    update = {"objectives": objectives, "evaluation": headline}
    return replace(draft, manifest=manifest.model_copy(update=update))


def _bootstrap(config: TrainingConfig) -> Bootstrap:
    return Bootstrap(config.shipping.resamples, config.seed)


def _require_enough(training: Dataset, held_out: Dataset, config: TrainingConfig) -> None:
    for name, part in (("training", training), ("held-out", held_out)):
        if not part.has_all_outcomes.any():
            raise DatasetError(
                f"none of the {len(part)} {name} prompts has an outcome from every expert"
                f" ({', '.join(config.expert_names)})"
            )
