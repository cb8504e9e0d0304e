"""How the router does with prompts of groups it has never seen: each group left out of training in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router_training.config import TrainingConfig
from router_training.data.dataset import Dataset
from router_training.drafting.settling import Reading, max_entropy_of, table_of, telling, view_of
from router_training.progress import Track
from router_training.step_one.basis import Basis
from router_training.step_one.classifier import Fold, Unseen, cross_fit, group_folds
from router_training.step_one.corrections import fitted_corrections, residuals
from router_training.step_one.gate import LADDER, Attempts, View, fitted_step, ramp_at

Vector = npt.NDArray[np.float64]

GROUP_FOLDS = 15  # at most: with fewer groups each is left out alone


@dataclass(frozen=True, slots=True)
class Abroad:
    """n prompts, each without its group: the `attempts` at every step of the gate's ladder, and the scores `expected`
    [n, experts] at the step that the other groups ask for."""

    attempts: Attempts
    expected: Vector


def abroad(
    basis: Basis,
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
    journey = _travelled(basis, dataset, folds, config, track)
    reading = Reading(
        familiar.calibration.probabilities(journey.unseen.logits),
        familiar.calibration,
        journey.unseen.similarities,
        _corrections(basis, folds, dataset, familiar, correction_share, config, track),
    )
    view = _view(reading, folds, dataset, familiar, config)
    attempts = _attempts(view, folds, journey.familiar)
    expected = np.zeros_like(dataset.scores)
    for fold in folds:
        step = fitted_step(attempts.rows(fold.seen), dataset.rows(fold.seen))
        expected[fold.left_out] = attempts.expected[step][fold.left_out]
    return Abroad(attempts, expected)


@dataclass(frozen=True, slots=True)
class Journey:
    """What step one says of every prompt without its group, and for each fold the similarities of prompts of the other
    groups to the same prototypes: other prototypes and another vocabulary would measure on another scale."""

    unseen: Unseen
    familiar: tuple[Vector, ...]


def _travelled(basis: Basis, dataset: Dataset, folds: Sequence[Fold], config: TrainingConfig, track: Track) -> Journey:
    """One fit for each fold, without its groups and without a sample of the other prompts."""
    draw = np.random.default_rng(config.seed)
    logits = np.zeros((len(dataset), len(dataset.categories)))
    similarities = np.zeros(len(dataset))
    familiar = []
    for fold in track(folds, "fitting without some groups"):
        stay = np.sort(draw.permutation(fold.seen)[: max(1, len(fold.seen) // config.classifier.folds)])
        away = Fold(np.setdiff1d(fold.seen, stay), np.concatenate((fold.left_out, stay)))
        unseen = cross_fit(basis, dataset, config, [away])
        logits[fold.left_out] = unseen.logits[fold.left_out]
        similarities[fold.left_out] = unseen.similarities[fold.left_out]
        familiar.append(unseen.similarities[stay])
    return Journey(Unseen(logits, similarities), tuple(familiar))


def _attempts(view: View, folds: Sequence[Fold], familiar: Sequence[Vector]) -> Attempts:
    expected = tuple(np.zeros_like(view.soft) for _ in LADDER)
    for fold, similarities in zip(folds, familiar, strict=True):
        left_out = view.rows(fold.left_out)
        for step, found in enumerate(expected):
            found[fold.left_out] = left_out.expected(ramp_at(step, similarities))
    return Attempts(expected, view.overall)


def _view(reading: Reading, folds: Sequence[Fold], dataset: Dataset, familiar: Reading, config: TrainingConfig) -> View:
    """Each fold with the score table of the other groups, as if its own had never been recorded."""
    soft = np.zeros_like(dataset.scores)
    overall = np.zeros_like(dataset.scores)
    for fold in folds:
        seen = telling(dataset, fold.seen)
        others, known = dataset.rows(seen), familiar.probabilities[seen]
        table = table_of(known, others, config)
        limit = max_entropy_of(known, table, others, config)
        view = view_of(reading.rows(fold.left_out), table, limit, config)
        soft[fold.left_out], overall[fold.left_out] = view.soft, view.overall
    return View(reading.similarities, soft, overall)


def _corrections(
    basis: Basis,
    folds: Sequence[Fold],
    dataset: Dataset,
    familiar: Reading,
    share: float,
    config: TrainingConfig,
    track: Track,
) -> Vector:
    """[n, experts]: as fitted without the prompt's group, scores and all."""
    found = np.zeros_like(dataset.scores)
    for fold in track(folds, "correcting without some groups") if share > 0.0 else ():
        seen = telling(dataset, fold.seen)
        table = table_of(familiar.probabilities[seen], dataset.rows(seen), config)
        others, known = dataset.rows(fold.seen), familiar.probabilities[fold.seen]
        left = residuals(others.scores, known @ table.scores)
        fitted = fitted_corrections(basis.gram.rows(fold.seen), left, others.weights)
        vectors = basis.unseen(fold.left_out, fold.seen, config.features.min_prompts)
        found[fold.left_out] = share * (vectors @ fitted.coefficients)
    return found
