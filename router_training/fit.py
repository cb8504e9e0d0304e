"""fit(): a training run, from recorded outcomes to a measured artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coe_server.routing import artifact as artifacts
from coe_server.routing.artifact import Artifact
from coe_server.routing.probes import failing
from coe_server.routing.router import Router
from coe_server.system.files import require_writable_folder
from router_training import Track
from router_training.classifier.discovery import with_categories
from router_training.classifier.features import basis_of
from router_training.classifier.sparse_rows import rows_between
from router_training.config import TrainingConfig
from router_training.cross_fit.draft import Learned, counted, grown, learn
from router_training.cross_fit.out_of_fold import cross_validated
from router_training.data.checks import require_categories, require_trainable
from router_training.data.dataset import Dataset, read_dataset
from router_training.data.embeddings import with_embeddings
from router_training.data.near_duplicates import with_near_duplicates
from router_training.data.provenance import ALONE
from router_training.data.report import duplicate_report
from router_training.data.split import split
from router_training.data.trained_on import hashes_of
from router_training.evaluation.as_saved import as_saved
from router_training.evaluation.evaluation import evaluate, main_objective
from router_training.evaluation.gains import (
    Evidence,
    Judged,
    UnseenGroups,
    exam_failed,
    leave_group_out,
    refusal,
    unseen_groups_gain,
    weigh_evidence,
)
from router_training.evaluation.handover_evidence import examined, with_handover
from router_training.evaluation.metrics import Bootstrap
from router_training.probes import write_own_and_chosen
from router_training.report.page import with_texts, write_report


@dataclass(frozen=True, slots=True)
class FitResult:
    """The artifact's folder, its evaluation, objective -> refusal (None: shipped), a sentence per failed probe, and the
    objectives that are served by --force alone -> their refusal."""

    folder: Path
    evaluation: dict[str, Any]
    refusals: dict[str, str | None]
    failing_probes: list[str]
    forced: dict[str, str] = field(default_factory=dict)

    @property
    def shipped(self) -> bool:
        return any(reason is None for reason in self.refusals.values())


def fit(config: TrainingConfig, out: Path, force: bool, track: Track) -> FitResult:
    """Train a router, measure it as saved, and write it to `out`, or to `out`.refused if no objective is shipped.

    Raises ConfigError, DatasetError or ArtifactError with one sentence; nothing half-written is left.
    """
    refused = out.with_name(out.name + ".refused")
    for place in (out, refused):
        artifacts.require_free(place)
    require_writable_folder("--out", out.parent)
    data = config.data
    dataset = read_dataset(data.prompts, data.outcomes, config.expert_names, data.label)
    prepare = partial(with_embeddings, settings=config.features, track=track)
    dataset = with_near_duplicates(prepare(dataset), track)
    sides = split(dataset, data.held_out_share, config.seed, data.split_by)
    require_trainable(sides, config)
    training, held_out = with_categories(sides.training, config, track), sides.held_out
    require_categories(training, config)
    everything = joined(training, held_out)
    counts = counted(everything, config, track)
    learned = learn(training, rows_between(counts, 0, len(training)), config, track)
    bootstrap = _bootstrap(config)
    evidence, unseen = _evidence(learned, bootstrap), _unseen_groups(learned)
    learned, handovers = with_handover(learned, unseen, bootstrap, config.shipping.harm_limit)
    evaluation = evaluate(as_saved(learned.draft, learned.kept, out.parent), held_out, bootstrap, track, prepare)
    evaluation["leave_group_out"] = _leave_group_out(learned, unseen, bootstrap)
    evaluation["near_duplicates"] = duplicate_report(dataset, sides).as_json()
    evaluation["cross_validated"] = {name: found.as_json() for name, found in evidence.items()}
    learned = examined(learned, handovers, evaluation)
    refusals = _refusals(learned, evidence, unseen, evaluation)
    forced = {name: why for name, why in refusals.items() if why is not None} if force else {}
    refusals = {name: None if name in forced else why for name, why in refusals.items()}
    basis = basis_of(counts, everything, config.features, track)
    del counts  # gigabytes with many prompts
    final = grown(learned, everything, basis, track)
    folder = refused if all(refusals.values()) else out
    if config.report.texts:
        evaluation = with_texts(evaluation, held_out)
    finish = partial(_finish, held_out=held_out, config=config)
    kept = replace(learned.kept, trained_on=hashes_of(everything, final.manifest.data_hash))
    artifacts.save(_marked(final, refusals, forced, evaluation), kept, evaluation, folder, finish)
    return FitResult(folder, evaluation, refusals, failing(Router.load(folder), folder), forced)


def joined(training: Dataset, held_out: Dataset) -> Dataset:
    """All prompts; held-out ones have no category if the categories of the training prompts were discovered."""
    known = held_out.categories == training.categories
    return Dataset(
        training.prompt_ids + held_out.prompt_ids,
        training.conversations + held_out.conversations,
        training.categories,
        np.concatenate((training.labels, held_out.labels if known else np.full(len(held_out), -1))),
        np.concatenate((training.groups, held_out.groups)),
        np.concatenate((training.weights, held_out.weights)),
        training.experts,
        np.concatenate((training.scores, held_out.scores)),
        np.concatenate((training.copies, held_out.copies)),
        origin=training.provenance.joined(held_out.provenance),
        said=training.said and held_out.said and training.said.joined(held_out.said),
    )


def _finish(folder: Path, held_out: Dataset, config: TrainingConfig) -> None:
    """Write the probes and the report."""
    texts = held_out if config.report.texts else None
    write_own_and_chosen(folder, config.probes.own, texts, config.probes.per_category)
    write_report(folder)


def _evidence(learned: Learned, bootstrap: Bootstrap) -> dict[str, Evidence]:
    chosen = cross_validated(learned.predictions, learned.predicted, learned.config)
    return weigh_evidence(chosen, learned.predicted, learned.draft.manifest, bootstrap)


def _leave_group_out(learned: Learned, unseen: UnseenGroups | None, bootstrap: Bootstrap) -> dict[str, Any] | None:
    if unseen is None:
        return None
    return leave_group_out(unseen, learned.draft.manifest.objectives[main_objective(learned.draft)], bootstrap)


def _refusals(
    learned: Learned, evidence: Mapping[str, Evidence], unseen: UnseenGroups | None, evaluation: dict[str, Any]
) -> dict[str, str | None]:
    """objective -> refusal, or None if it is shipped. Objectives without a budget are the same router."""
    by_budget = {row["objective"]: row for row in evaluation["by_budget"]}
    refusals: dict[str, str | None] = {}
    for name, entry in learned.draft.manifest.objectives.items():
        has_budget = entry.budget is not None
        outside = unseen_groups_gain(unseen.priced(learned.draft.manifest.costs(name)), entry) if unseen else None
        why = refusal(evidence[name].gain.low, outside, has_budget, learned.config.shipping.harm_limit)
        exam = by_budget.get(name, evaluation["router"])["gain_ci95"][1]
        weakly = ALONE.get(evaluation.get("scored_by", ""))
        refusals[name] = weakly or why or exam_failed(exam, has_budget)
    return refusals


def _unseen_groups(learned: Learned) -> UnseenGroups | None:
    """Prompts with all outcomes and their leave-one-group-out expected scores; None without groups."""
    unseen, prompts = learned.predictions.group_out, learned.predicted
    if unseen is None:
        return None
    complete = np.flatnonzero(prompts.measures & (prompts.weights > 0.0))
    judged = Judged(prompts.rows(complete), np.array(learned.draft.manifest.costs()))
    return UnseenGroups(judged, unseen.expected[complete], unseen.attempts.overall[complete])


def _marked(
    draft: Artifact, refusals: Mapping[str, str | None], forced: Mapping[str, str], evaluation: dict[str, Any]
) -> Artifact:
    """The artifact with the verdict on each objective and the evaluation's headline."""
    manifest = draft.manifest
    objectives = {
        name: entry.model_copy(
            update={"shipped": refusals[name] is None, "refusal": refusals[name], "forced": forced.get(name)}
        )
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
