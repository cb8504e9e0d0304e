"""Probabilities that mean what they say, learned from prompts that the classifier was not fitted on. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from coe_server.routing.classifier import Calibration, Isotonic, Sigmoid, Temperature, softmax

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
    """The corners of the rising step curve nearest to the hits."""
    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(logits, hits.astype(np.float64))
    x, y = np.asarray(curve.X_thresholds_, dtype=np.float64), np.asarray(curve.y_thresholds_, dtype=np.float64)
    if len(x) > CURVE_POINTS:
        kept = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).astype(np.int64))
        x, y = x[kept], y[kept]
    return x, y
