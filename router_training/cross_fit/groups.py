"""Leave-one-group-out predictions: what the router does with prompts unlike all that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router_training import Track
from router_training.classifier.calibration import fitted_corrections, residuals
from router_training.classifier.classifier import Unseen, cross_fit, group_folds
from router_training.classifier.features import Basis
from router_training.config import TrainingConfig
from router_training.cross_fit.thresholds import (
    LADDER,
    Attempts,
    Reading,
    View,
    fitted_step,
    max_entropy_of,
    ramp_at,
    table_of,
    telling,
    view_of,
)
from router_training.data.dataset import Dataset
from router_training.data.split import Fold

Vector = npt.NDArray[np.float64]

GROUP_FOLDS = 15  # at most; up to this number, each group is a fold of its own


@dataclass(frozen=True, slots=True)
class LeaveGroupOut:
    """Leave-one-group-out predictions of n prompts.

    `attempts` are at every step of the gate's ladder; `expected` [n, experts] are the scores at the step fitted on the
    other groups.
    """

    attempts: Attempts
    expected: Vector


def leave_groups_out(
    basis: Basis,
    dataset: Dataset,
    in_group: Reading,
    correction_share: float,
    config: TrainingConfig,
    track: Track,
) -> LeaveGroupOut | None:
    """Leave-one-group-out predictions of the prompts of `dataset`; None for fewer than three groups."""
    folds = group_folds(dataset, GROUP_FOLDS)
    if folds is None:
        return None
    unseen_groups = _predicted_without_groups(basis, dataset, folds, config, track)
    reading = Reading(
        in_group.calibration.probabilities(unseen_groups.unseen.logits),
        in_group.calibration,
        unseen_groups.unseen.similarities,
        _corrections(basis, folds, dataset, in_group, correction_share, config, track),
    )
    view = _view(reading, folds, dataset, in_group, config)
    attempts = _attempts(view, folds, unseen_groups.in_group)
    expected = np.zeros_like(dataset.scores)
    for fold in folds:
        step = fitted_step(attempts.rows(fold.seen), dataset.rows(fold.seen))
        expected[fold.left_out] = attempts.expected[step][fold.left_out]
    return LeaveGroupOut(attempts, expected)


@dataclass(frozen=True, slots=True)
class GroupPredictions:
    """Step one's output for every held-out group, and for each fold the similarities of in-group prompts.

    Both are measured with the fold's prototypes and vocabulary: those of another fit have another scale.
    """

    unseen: Unseen
    in_group: tuple[Vector, ...]


def _predicted_without_groups(
    basis: Basis, dataset: Dataset, folds: Sequence[Fold], config: TrainingConfig, track: Track
) -> GroupPredictions:
    """One fit for each fold, without its groups and without a sample of the other prompts."""
    draw = np.random.default_rng(config.seed)
    logits = np.zeros((len(dataset), len(dataset.categories)))
    similarities = np.zeros(len(dataset))
    in_group = []
    for fold in track(folds, "fitting without some groups"):
        stay = np.sort(draw.permutation(fold.seen)[: max(1, len(fold.seen) // config.classifier.folds)])
        away = Fold(np.setdiff1d(fold.seen, stay), np.concatenate((fold.left_out, stay)))
        unseen = cross_fit(basis, dataset, config, [away])
        logits[fold.left_out] = unseen.logits[fold.left_out]
        similarities[fold.left_out] = unseen.similarities[fold.left_out]
        in_group.append(unseen.similarities[stay])
    return GroupPredictions(Unseen(logits, similarities), tuple(in_group))


def _attempts(view: View, folds: Sequence[Fold], in_group: Sequence[Vector]) -> Attempts:
    expected = tuple(np.zeros_like(view.soft) for _ in LADDER)
    for fold, similarities in zip(folds, in_group, strict=True):
        left_out = view.rows(fold.left_out)
        for step, found in enumerate(expected):
            found[fold.left_out] = left_out.expected(ramp_at(step, similarities))
    return Attempts(expected, view.overall)


def _view(reading: Reading, folds: Sequence[Fold], dataset: Dataset, in_group: Reading, config: TrainingConfig) -> View:
    """Expected scores of each fold by the score table of the other groups."""
    soft = np.zeros_like(dataset.scores)
    overall = np.zeros_like(dataset.scores)
    for fold in folds:
        seen = telling(dataset, fold.seen)
        others, known = dataset.rows(seen), in_group.probabilities[seen]
        table = table_of(known, others, config)
        limit = max_entropy_of(known, table, others, config)
        view = view_of(reading.rows(fold.left_out), table, limit, config)
        soft[fold.left_out], overall[fold.left_out] = view.soft, view.overall
    return View(reading.similarities, soft, overall)


def _corrections(
    basis: Basis,
    folds: Sequence[Fold],
    dataset: Dataset,
    in_group: Reading,
    share: float,
    config: TrainingConfig,
    track: Track,
) -> Vector:
    """[n, experts]: corrections and score table fitted without the prompt's group."""
    found = np.zeros_like(dataset.scores)
    for fold in track(folds, "correcting without some groups") if share > 0.0 else ():
        seen = telling(dataset, fold.seen)
        table = table_of(in_group.probabilities[seen], dataset.rows(seen), config)
        others, known = dataset.rows(fold.seen), in_group.probabilities[fold.seen]
        left = residuals(others.scores, known @ table.scores)
        fitted = fitted_corrections(basis.gram.rows(fold.seen), left, others.weights)
        vectors = basis.unseen(fold.left_out, fold.seen, config.features.min_prompts)
        found[fold.left_out] = share * (vectors @ fitted.coefficients)
    return found
