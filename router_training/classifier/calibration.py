"""Calibration of the classifier and corrections of the scores, learned from prompts not fitted on. Pure.

Corrections are a ridge regression of the residuals of the score table on the prompts' own features. They change
differences between experts only: that a prompt is hard for all experts changes no choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from coe_server.routing.classifier import Calibration, Corrections, Isotonic, Sigmoid, Temperature, softmax
from router_training import Track
from router_training.classifier.gram import Gram
from router_training.data.dataset import Dataset
from router_training.data.split import Fold

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Method = Literal["temperature", "sigmoid", "isotonic"]

CURVE_POINTS = 200  # of an isotonic curve at most
FLAT = 0.0  # slope of a category without a prompt to learn from


def fitted_calibration(logits: Vector, labels: Ints, method: Method) -> Calibration:
    """From out-of-fold `logits` [n, categories] and true `labels` [n], -1 where unknown."""
    known = labels >= 0
    fits: dict[str, Callable[[Vector, Ints], Calibration]] = {
        "temperature": fitted_temperature,
        "sigmoid": _fitted_sigmoid,
        "isotonic": _fitted_isotonic,
    }
    return fits[method](logits[known], labels[known])


def fitted_temperature(logits: Vector, labels: Ints) -> Temperature:
    """The temperature under which the true categories are likeliest; 1 / 20 to 20."""

    def surprise(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))
        return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())

    return Temperature(float(np.exp(minimize_scalar(surprise, bounds=(-3.0, 3.0), method="bounded").x)))


def _fitted_sigmoid(logits: Vector, labels: Ints) -> Sigmoid:
    curves = [_platt(logits[:, c], labels == c) for c in range(logits.shape[1])]
    return Sigmoid(np.array([slope for slope, _ in curves]), np.array([offset for _, offset in curves]))


def _platt(logits: Vector, hits: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, offset) of 1 / (1 + exp(slope * logit + offset)), with Platt's targets short of 0 and 1.

    Platt, "Probabilistic outputs for support vector machines" (1999), section 2.
    """
    right, wrong = int(hits.sum()), int((~hits).sum())
    if right == 0:
        return FLAT, float(np.log(wrong + 1.0))
    targets = np.where(hits, (right + 1.0) / (right + 2.0), 1.0 / (wrong + 2.0))
    scale = max(1.0, float(np.abs(logits).max()))

    def loss(parameters: Vector) -> tuple[float, Vector]:
        exponents = -(parameters[0] * logits / scale + parameters[1])
        errors = targets - expit(exponents)
        value = float(np.logaddexp(0.0, exponents).sum() - (targets * exponents).sum())
        return value, np.array([(errors * logits / scale).sum(), errors.sum()])

    start = np.array([0.0, np.log((wrong + 1.0) / (right + 1.0))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 1e-14}).x
    return float(found[0]) / scale, float(found[1])


def _fitted_isotonic(logits: Vector, labels: Ints) -> Isotonic:
    curves = [_rising(logits[:, c], labels == c) for c in range(logits.shape[1])]
    points = max(len(x) for x, _ in curves)
    padded = [(np.pad(x, (0, points - len(x)), "edge"), np.pad(y, (0, points - len(y)), "edge")) for x, y in curves]
    return Isotonic(np.stack([x for x, _ in padded]), np.stack([y for _, y in padded]))


def _rising(logits: Vector, hits: npt.NDArray[np.bool_]) -> tuple[Vector, Vector]:
    """The corners of the isotonic step curve fitted to the hits."""
    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(logits, hits.astype(np.float64))
    x, y = np.asarray(curve.X_thresholds_, dtype=np.float64), np.asarray(curve.y_thresholds_, dtype=np.float64)
    if len(x) > CURVE_POINTS:
        kept = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).astype(np.int64))
        x, y = x[kept], y[kept]
    return x, y


STRENGTH = 50.0  # of the ridge; a prompt's vector has squared length 2, and one outcome is weak evidence
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

    A prompt counts as the root of its weight: with whole weights a few heavy prompts would decide the fit.
    """
    roots = np.sqrt(_counted(weights))[:, np.newaxis]

    def strengthened(duals: Vector) -> Vector:
        return roots * gram.times(roots * duals) + STRENGTH * duals

    duals = _solved(strengthened, roots * left)
    return Corrections(gram.coefficients(roots * duals))


@dataclass(frozen=True, slots=True)
class UnseenCorrections:
    """Out-of-fold `corrections` [n, experts] as they would be applied, and the `share` of them that helps."""

    corrections: Vector
    share: float


def out_of_fold_corrections(
    gram: Gram, dataset: Dataset, expected: Callable[[Ints], Vector], folds: Iterable[Fold], track: Track
) -> UnseenCorrections:
    """Out-of-fold corrections. `expected` maps the prompts of a fit to expected scores [n, experts] of all prompts.

    Expected scores must not depend on the fold that is left out. Otherwise residuals inside and outside the fold are
    negatively correlated, and helpful corrections look harmful.
    """
    unseen, left = np.zeros_like(dataset.scores), np.zeros_like(dataset.scores)
    for fold in track(list(folds), "correcting without some prompts"):
        found = residuals(dataset.scores, expected(fold.seen))
        fitted = fitted_corrections(gram.rows(fold.seen), found[fold.seen], dataset.weights[fold.seen])
        unseen[fold.left_out] = gram.vectors[fold.left_out] @ fitted.coefficients
        left[fold.left_out] = found[fold.left_out]
    share = earned_share(unseen, left, dataset.weights)
    return UnseenCorrections(share * unseen, share)


def earned_share(unseen: Vector, left: Vector, weights: Vector) -> float:
    """The share of the corrections to apply, 0 to 1: the least-squares factor on unseen prompts, 0 unless certain."""
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
