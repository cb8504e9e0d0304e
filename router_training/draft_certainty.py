"""`coe-train draft` with outcomes: the first tokens of a draft's experts, and the handover of its objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from coe_server.errors import DatasetError
from coe_server.routing.artifact import Artifact
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.classifier.certainty import LEAST_PROMPTS, curve_entries
from router_training.classifier.classifier import prompt_folds
from router_training.data.dataset import read_dataset
from router_training.evaluation.evaluation import decide
from router_training.evaluation.handover import Stage, best_handover, cross_played, gain_of
from router_training.evaluation.handover_evidence import HandoverEvidence, certain_entries, entry_of
from router_training.evaluation.metrics import Bootstrap

FOLDS, RESAMPLES, SEED = 5, 1000, 0


def with_certainty(artifact: Artifact, prompts: Sequence[Path], outcomes: Sequence[Path]) -> Artifact:
    """The draft, as saved and loaded, with its experts' certainty and, where n-grams route, its objective's handover.

    A draft expects no scores, so everything is by tokens and by what others score instead. Raises DatasetError where no
    expert has enough outcomes with log-probabilities.
    """
    dataset = read_dataset(prompts, outcomes, artifact.expert_names)
    folds = prompt_folds(dataset, FOLDS, SEED)
    certainty = curve_entries(dataset, np.full(dataset.scores.shape, np.nan), folds)
    if not certainty:
        raise DatasetError(
            f"no expert has {LEAST_PROMPTS} outcomes with log-probabilities; coe-train collect records them"
        )
    manifest = artifact.manifest.model_copy(update=certain_entries(dataset, certainty))
    artifact = replace(artifact, manifest=manifest)
    complete = np.flatnonzero(dataset.measures & (dataset.weights > 0.0))
    if manifest.features.embedded_before_routing or not len(complete):
        return artifact  # the margin is the server's to set: prompts cannot be routed here, or not compared
    measured = dataset.rows(complete)
    entries = dict(manifest.objectives)
    for name, entry in manifest.objectives.items():
        found = decide(Router(artifact), measured, name, in_silence)
        overall = np.tile(np.average(measured.scores, axis=0, weights=measured.weights), (len(measured), 1))
        nothing = np.zeros(len(measured))
        stage = Stage.of(measured, overall, found.chosen, nothing, nothing > 0.0, manifest.costs(name))
        rule = best_handover(stage, manifest.certainty_models)
        inside = gain_of(stage, cross_played(stage, prompt_folds(measured, FOLDS, SEED)), Bootstrap(RESAMPLES, SEED))
        entries[name] = entry.model_copy(update={"handover": entry_of(rule, HandoverEvidence(inside, None), 0.0)})
    return replace(artifact, manifest=manifest.model_copy(update={"objectives": entries}))
