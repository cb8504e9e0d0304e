"""How the router does with prompts of groups it has never seen: each group left out of training in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router_training.classifier import Fold, cross_fit, group_folds
from router_training.config import TrainingConfig
from router_training.corrections import fitted_corrections, residuals
from router_training.dataset import Dataset
from router_training.gate import LADDER, Attempts, View, fitted_step, ramp_at
from router_training.progress import Track
from router_training.settling import Reading, max_entropy_of, table_of, view_of
from router_training.vectors import Matrix

Vector = npt.NDArray[np.float64]

GROUP_FOLDS = 15  # at most: with fewer groups each is left out alone


@dataclass(frozen=True, slots=True)
class Abroad:
    """n prompts, each without its group: the `attempts` at every step of the gate's ladder, and the scores `expected`
    [n, experts] at the step that the other groups ask for."""

    attempts: Attempts
    expected: Vector


def abroad(
    counts: Matrix,
    vectors: Matrix,
    dataset: Dataset,
    familiar: Reading,
    correction_share: float,
    config: TrainingConfig,
    track: Track,
) -> Abroad | None:
    """The prompts of `dataset`, read without their groups; None where there are too few groups to judge by."""
    folds = group_folds(dataset, GROUP_FOLDS)
    if folds is None:
        return None
    unseen = cross_fit(counts, dataset, config, track(folds, "fitting without some groups"))
    reading = Reading(
        familiar.calibration.probabilities(unseen.logits),
        familiar.calibration,
        unseen.similarities,
        _corrections(vectors, folds, dataset, familiar, correction_share, config),
    )
    view = _view(reading, folds, dataset, familiar, config)
    attempts = _attempts(view, folds, familiar)
    expected = np.zeros_like(dataset.scores)
    for fold in folds:
        step = fitted_step(attempts.rows(fold.seen), dataset.rows(fold.seen))
        expected[fold.left_out] = attempts.expected[step][fold.left_out]
    return Abroad(attempts, expected)


def _attempts(view: View, folds: Sequence[Fold], familiar: Reading) -> Attempts:
    expected = tuple(np.zeros_like(view.soft) for _ in LADDER)
    for fold in folds:
        left_out = view.rows(fold.left_out)
        for step, found in enumerate(expected):
            found[fold.left_out] = left_out.expected(ramp_at(step, familiar.similarities[fold.seen]))
    return Attempts(expected, view.overall)


def _view(reading: Reading, folds: Sequence[Fold], dataset: Dataset, familiar: Reading, config: TrainingConfig) -> View:
    """Each fold with the score table of the other groups, as if its own had never been recorded."""
    soft = np.zeros_like(dataset.scores)
    overall = np.zeros_like(dataset.scores)
    for fold in folds:
        others, known = dataset.rows(fold.seen), familiar.probabilities[fold.seen]
        table = table_of(known, others, config)
        limit = max_entropy_of(known, table, others, config)
        view = view_of(reading.rows(fold.left_out), table, limit, config)
        soft[fold.left_out], overall[fold.left_out] = view.soft, view.overall
    return View(reading.similarities, soft, overall)


def _corrections(
    vectors: Matrix, folds: Sequence[Fold], dataset: Dataset, familiar: Reading, share: float, config: TrainingConfig
) -> Vector:
    """[n, experts]: as fitted without the prompt's group, scores and all."""
    found = np.zeros_like(dataset.scores)
    for fold in folds if share > 0.0 else ():
        others, known = dataset.rows(fold.seen), familiar.probabilities[fold.seen]
        left = residuals(others.scores, known @ table_of(known, others, config).scores)
        fitted = fitted_corrections(vectors[fold.seen], left, others.weights)
        found[fold.left_out] = share * (vectors[fold.left_out] @ fitted.coefficients)
    return found
