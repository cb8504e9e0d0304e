"""What the router would have done with prompts it was not fitted on: familiar ones, and those of unseen groups.

Everything that serving needs and that only unseen prompts can tell comes from here: the temperature, the score
table, the gate's threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import softmax
from router_training.classifier import Fold, Unseen, cross_fit, fitted_temperature, group_folds, prompt_folds
from router_training.config import TrainingConfig
from router_training.dataset import Dataset
from router_training.gate import View, fitted_threshold
from router_training.progress import Track
from router_training.scores import ScoreTable, score_table
from router_training.vectors import Matrix

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Abroad:
    """What the router expects of prompts from groups it never saw, and would if it trusted no category at all:
    `expected` and `overall`, each [n, experts]."""

    expected: Vector
    overall: Vector


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Out-of-fold `probabilities` [n, categories] and `inside` the gate [n], and what was learned from them.

    `expected` [n, experts] are the scores the router expects. `foreign` is the same where each prompt's whole
    group was unseen, threshold included (None without groups).
    """

    probabilities: Vector
    inside: npt.NDArray[np.bool_]
    temperature: float
    threshold: float
    table: ScoreTable
    expected: Vector
    foreign: Abroad | None


def rehearse(counts: Matrix, dataset: Dataset, config: TrainingConfig, track: Track) -> Rehearsal:
    """Fits step one several times, each time without some prompts, and looks at what it says of those."""
    by_prompt = prompt_folds(dataset, config.classifier.folds, config.seed)
    unseen = cross_fit(counts, dataset, config, track(by_prompt, "fitting without some prompts"))
    rated = _rated(unseen, dataset)
    table = _table(dataset, rated.probabilities, config)
    familiar = _view(unseen, rated.probabilities, table, config)
    by_group = group_folds(dataset, config.classifier.folds)
    if by_group is None:
        threshold = fitted_threshold(familiar.trial(dataset), None)
        abroad = None
    else:
        unseen_groups = cross_fit(counts, dataset, config, track(by_group, "fitting without some groups"))
        foreign = _foreign_view(unseen_groups, by_group, dataset, rated, config)
        threshold = fitted_threshold(familiar.trial(dataset), foreign.trial(dataset))
        abroad = _abroad(familiar, foreign, by_group, dataset)
    return Rehearsal(
        probabilities=rated.probabilities,
        inside=familiar.similarities >= threshold,
        temperature=rated.temperature,
        threshold=threshold,
        table=table,
        expected=familiar.expected(threshold),
        foreign=abroad,
    )


@dataclass(frozen=True, slots=True)
class Rated:
    """Calibrated out-of-fold `probabilities` [n, categories], and the temperature that made them so."""

    probabilities: Vector
    temperature: float


def _rated(unseen: Unseen, dataset: Dataset) -> Rated:
    temperature = fitted_temperature(unseen.logits, dataset.labels)
    return Rated(softmax(unseen.logits / temperature), temperature)


def _table(dataset: Dataset, probabilities: Vector, config: TrainingConfig) -> ScoreTable:
    return score_table(
        probabilities.argmax(axis=1),
        dataset.scores,
        dataset.weights,
        len(dataset.categories),
        config.mapping.shrinkage_prompts,
    )


def _view(unseen: Unseen, probabilities: Vector, table: ScoreTable, config: TrainingConfig) -> View:
    overall = np.broadcast_to(table.overall_scores, (len(probabilities), len(table.overall_scores)))
    sure = probabilities.max(axis=1) >= config.classifier.min_confidence
    soft = np.where(sure[:, np.newaxis], probabilities @ table.scores, overall)
    return View(unseen.similarities, soft, overall)


def _foreign_view(
    unseen: Unseen, folds: Sequence[Fold], dataset: Dataset, familiar: Rated, config: TrainingConfig
) -> View:
    """Each fold with the score table of the other groups, as if its own had never been recorded."""
    probabilities = softmax(unseen.logits / familiar.temperature)
    soft = np.zeros_like(dataset.scores)
    overall = np.zeros_like(dataset.scores)
    for fold in folds:
        table = _table(dataset.rows(fold.seen), familiar.probabilities[fold.seen], config)
        left_out = Unseen(unseen.logits[fold.left_out], unseen.similarities[fold.left_out])
        view = _view(left_out, probabilities[fold.left_out], table, config)
        soft[fold.left_out], overall[fold.left_out] = view.soft, view.overall
    return View(unseen.similarities, soft, overall)


def _abroad(familiar: View, foreign: View, folds: Sequence[Fold], dataset: Dataset) -> Abroad:
    """Expected scores under a threshold that the prompt's own group had no say in."""
    expected = np.zeros_like(dataset.scores)
    for fold in folds:
        others = dataset.rows(fold.seen)
        threshold = fitted_threshold(familiar.rows(fold.seen).trial(others), foreign.rows(fold.seen).trial(others))
        expected[fold.left_out] = foreign.rows(fold.left_out).expected(threshold)
    return Abroad(expected, foreign.overall)
