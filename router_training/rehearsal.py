"""What the router would have done with prompts it was not fitted on: familiar ones, and those of unseen groups.

Everything that serving needs and that only unseen prompts can tell comes from here: the calibration, the score
table, the gate's threshold, how unsure is too unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.calibration import Calibration, normalised_entropy
from router_training.bounds import lower_bounds
from router_training.calibration import fitted_calibration
from router_training.classifier import Fold, Unseen, cross_fit, group_folds, prompt_folds, training_vectors
from router_training.config import TrainingConfig
from router_training.corrections import fitted_corrections, practised, residuals
from router_training.dataset import Dataset
from router_training.gate import View, fitted_threshold
from router_training.progress import Track
from router_training.scores import ScoreTable, score_table
from router_training.uncertainty import NEVER, fitted_entropy_limit
from router_training.vectors import Matrix

Vector = npt.NDArray[np.float64]

GROUP_FOLDS = 15  # at most: with fewer groups each is left out alone


@dataclass(frozen=True, slots=True)
class Abroad:
    """What the router expects of prompts from groups it never saw, and would if it trusted no category at all:
    `expected` and `overall`, each [n, experts]."""

    expected: Vector
    overall: Vector


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Out-of-fold `probabilities` [n, categories] and `inside` the gate [n], and what was learned from them.

    `expected` [n, experts] are the scores the router expects, `corrections` [n, experts] what they owe to the prompts'
    own words, `correction_share` how much of these earned its place (0: none). `foreign` is the same where each
    prompt's whole group was unseen, threshold included (None without groups).
    """

    probabilities: Vector
    inside: npt.NDArray[np.bool_]
    calibration: Calibration
    max_entropy: float
    threshold: float
    table: ScoreTable
    correction_share: float
    corrections: Vector
    expected: Vector
    foreign: Abroad | None


def rehearse(counts: Matrix, dataset: Dataset, config: TrainingConfig, track: Track) -> Rehearsal:
    """Fits step one several times, each time without some prompts, and looks at what it says of those."""
    by_prompt = prompt_folds(dataset, config.classifier.folds, config.seed)
    unseen = cross_fit(counts, dataset, config, track(by_prompt, "fitting without some prompts"))
    rated = _rated(unseen, dataset, config)
    table = _table(dataset, rated.probabilities, config)
    max_entropy = _max_entropy(rated.probabilities, table, dataset, config)
    vectors = training_vectors(counts, dataset, config)
    practice = practised(vectors, dataset, rated.probabilities @ table.scores, by_prompt, track)
    familiar = _view(unseen, rated.probabilities, table, practice.corrections, max_entropy, config)
    by_group = group_folds(dataset, GROUP_FOLDS)
    if by_group is None:
        threshold = fitted_threshold(familiar.trial(dataset), None)
        abroad = None
    else:
        unseen_groups = cross_fit(counts, dataset, config, track(by_group, "fitting without some groups"))
        corrections = _corrections_abroad(vectors, by_group, dataset, rated, practice.share, config)
        foreign = _foreign_view(unseen_groups, by_group, dataset, rated, corrections, config)
        threshold = fitted_threshold(familiar.trial(dataset), foreign.trial(dataset))
        abroad = _abroad(familiar, foreign, by_group, dataset)
    return Rehearsal(
        probabilities=rated.probabilities,
        inside=familiar.similarities >= threshold,
        calibration=rated.calibration,
        max_entropy=max_entropy,
        threshold=threshold,
        table=table,
        correction_share=practice.share,
        corrections=practice.corrections,
        expected=familiar.expected(threshold),
        foreign=abroad,
    )


@dataclass(frozen=True, slots=True)
class Rated:
    """Calibrated out-of-fold `probabilities` [n, categories], and the calibration that made them so."""

    probabilities: Vector
    calibration: Calibration


def _rated(unseen: Unseen, dataset: Dataset, config: TrainingConfig) -> Rated:
    calibration = fitted_calibration(unseen.logits, dataset.labels, config.classifier.calibration)
    return Rated(calibration.probabilities(unseen.logits), calibration)


def _max_entropy(probabilities: Vector, table: ScoreTable, dataset: Dataset, config: TrainingConfig) -> float:
    """The configured limit, or the one that these prompts ask for."""
    asked = config.classifier.max_entropy
    if asked != "auto":
        return asked
    anything = Unseen(np.zeros_like(probabilities), np.zeros(len(probabilities)))
    trial = _view(anything, probabilities, table, np.zeros_like(dataset.scores), NEVER, config).trial(dataset)
    judged = np.flatnonzero(dataset.has_all_outcomes & (dataset.weights > 0.0))
    return fitted_entropy_limit(normalised_entropy(probabilities[judged]), trial.gains, trial.weights)


def _table(dataset: Dataset, probabilities: Vector, config: TrainingConfig) -> ScoreTable:
    table = score_table(probabilities, dataset.scores, dataset.weights, config.mapping.shrinkage_prompts)
    return lower_bounds(table, config.mapping.z) if config.mapping.scores == "lower_bound" else table


def _view(
    unseen: Unseen,
    probabilities: Vector,
    table: ScoreTable,
    corrections: Vector,
    max_entropy: float,
    config: TrainingConfig,
) -> View:
    overall = np.broadcast_to(table.overall_scores, (len(probabilities), len(table.overall_scores)))
    sure = probabilities.max(axis=1) >= config.classifier.min_confidence
    sure &= normalised_entropy(probabilities) <= max_entropy
    soft = np.where(sure[:, np.newaxis], probabilities @ table.scores + corrections, overall)
    return View(unseen.similarities, soft, overall)


def _foreign_view(
    unseen: Unseen,
    folds: Sequence[Fold],
    dataset: Dataset,
    familiar: Rated,
    corrections: Vector,
    config: TrainingConfig,
) -> View:
    """Each fold with the score table of the other groups, as if its own had never been recorded."""
    probabilities = familiar.calibration.probabilities(unseen.logits)
    soft = np.zeros_like(dataset.scores)
    overall = np.zeros_like(dataset.scores)
    for fold in folds:
        others, known = dataset.rows(fold.seen), familiar.probabilities[fold.seen]
        table = _table(others, known, config)
        max_entropy = _max_entropy(known, table, others, config)
        left_out = Unseen(unseen.logits[fold.left_out], unseen.similarities[fold.left_out])
        view = _view(left_out, probabilities[fold.left_out], table, corrections[fold.left_out], max_entropy, config)
        soft[fold.left_out], overall[fold.left_out] = view.soft, view.overall
    return View(unseen.similarities, soft, overall)


def _corrections_abroad(
    vectors: Matrix, folds: Sequence[Fold], dataset: Dataset, familiar: Rated, share: float, config: TrainingConfig
) -> Vector:
    """[n, experts]: corrections as fitted without the prompt's group, scores and all."""
    found = np.zeros_like(dataset.scores)
    for fold in folds if share > 0.0 else ():
        others, known = dataset.rows(fold.seen), familiar.probabilities[fold.seen]
        left = residuals(others.scores, known @ _table(others, known, config).scores)
        fitted = fitted_corrections(vectors[fold.seen], left, others.weights)
        found[fold.left_out] = share * (vectors[fold.left_out] @ fitted.coefficients)
    return found


def _abroad(familiar: View, foreign: View, folds: Sequence[Fold], dataset: Dataset) -> Abroad:
    """Expected scores under a threshold that the prompt's own group had no say in."""
    expected = np.zeros_like(dataset.scores)
    for fold in folds:
        others = dataset.rows(fold.seen)
        threshold = fitted_threshold(familiar.rows(fold.seen).trial(others), foreign.rows(fold.seen).trial(others))
        expected[fold.left_out] = foreign.rows(fold.left_out).expected(threshold)
    return Abroad(expected, foreign.overall)
