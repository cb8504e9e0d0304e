"""Corrections, fitted: ridge regression of what the categories left unexplained on the prompts' own features. Pure.

Only differences between experts are corrected: that a prompt is hard for all of them moves no choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import Corrections
from router_training.data.dataset import Dataset
from router_training.progress import Track
from router_training.step_one.classifier import Fold
from router_training.step_one.gram import Gram

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STRENGTH = 50.0  # of the ridge; a prompt's vector has squared length 2, one outcome says little
STEPS = 15  # of conjugate gradients at most
PRECISE = 1e-2  # relative length of what is left when they may stop: early stopping only regularises more
CERTAIN = 2.0  # standard errors by which corrections must help


def residuals(outcomes: Vector, expected: Vector) -> Vector:
    """[n, experts]: outcomes less expectations, less their mean over the experts; 0 where an outcome is missing."""
    left = outcomes - expected
    known = ~np.isnan(left)
    filled = np.where(known, left, 0.0)
    means = filled.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    return np.where(known, filled - means, 0.0)


def fitted_corrections(gram: Gram, left: Vector, weights: Vector) -> Corrections:
    """From n prompts, residuals [n, experts] and `weights` [n].

    A prompt counts as the root of its weight: whole weights would leave the word to the few heaviest prompts.
    """
    roots = np.sqrt(_counted(weights))[:, np.newaxis]

    def strengthened(duals: Vector) -> Vector:
        return roots * gram.times(roots * duals) + STRENGTH * duals

    duals = _solved(strengthened, roots * left)
    return Corrections(gram.coefficients(roots * duals))


@dataclass(frozen=True, slots=True)
class Practice:
    """`corrections` [n, experts] as they would be applied, each of a prompt not fitted on; the `share` they earned."""

    corrections: Vector
    share: float


def practised(
    gram: Gram, dataset: Dataset, expected: Callable[[Ints], Vector], folds: Iterable[Fold], track: Track
) -> Practice:
    """Corrections fitted without each fold in turn. `expected` gives the scores [n, experts] to expect of all prompts
    by what the given ones alone have shown.

    Scores that a fold had a say in leave residuals that even out between it and the others: what is left there would
    then speak against whatever is left here, and corrections would be thought harmful that help.
    """
    unseen, left = np.zeros_like(dataset.scores), np.zeros_like(dataset.scores)
    for fold in track(list(folds), "correcting without some prompts"):
        found = residuals(dataset.scores, expected(fold.seen))
        fitted = fitted_corrections(gram.rows(fold.seen), found[fold.seen], dataset.weights[fold.seen])
        unseen[fold.left_out] = gram.vectors[fold.left_out] @ fitted.coefficients
        left[fold.left_out] = found[fold.left_out]
    share = earned_share(unseen, left, dataset.weights)
    return Practice(share * unseen, share)


def earned_share(unseen: Vector, left: Vector, weights: Vector) -> float:
    """How much of the corrections to apply, 0 to 1: the least-squares factor on unseen prompts, 0 unless certain."""
    counted = _counted(weights)
    agreement = counted * (unseen * left).sum(axis=1)
    size = float(counted @ (unseen**2).sum(axis=1))
    if size <= 0.0 or agreement.sum() <= CERTAIN * np.sqrt((agreement**2).sum()):
        return 0.0
    return min(1.0, float(agreement.sum()) / size)


def _counted(weights: Vector) -> Vector:
    roots = np.sqrt(weights)
    return np.asarray(roots / (roots.mean() or 1.0))  # where all weigh nothing there is nothing to divide


def _solved(matrix: Callable[[Vector], Vector], right: Vector) -> Vector:
    """Conjugate gradients for every column of `right` [n, k] at once."""
    found = np.zeros_like(right)
    rest = right.copy()
    direction = rest.copy()
    squares = (rest**2).sum(axis=0)
    enough = PRECISE**2 * squares
    for _ in range(STEPS):
        if (squares <= enough).all():
            break
        moved = matrix(direction)
        length = squares / np.maximum((direction * moved).sum(axis=0), 1e-300)
        found += length * direction
        rest -= length * moved
        fresh = (rest**2).sum(axis=0)
        direction = rest + fresh / np.maximum(squares, 1e-300) * direction
        squares = fresh
    return found
