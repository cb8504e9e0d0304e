"""Multinomial logistic regression: scikit-learn's objective and stopping rule, in single precision, on several cores.

scikit-learn uses one core for it and copies the vectors to double precision for every product, which was most of the
time of a training run. Knows nothing of prompts.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.optimize import minimize
from scipy.special import logsumexp

Matrix = sp.csr_array
Floats = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PARTS = 4  # of the prompts, computed side by side; the same number everywhere, so that sums are the same everywhere
SMOOTH = 1e-3  # largest slope at which the solver stops
TRIES = 50  # of one step's length


def fitted_logistic(
    vectors: Matrix, labels: Ints, inverse_regularisation: float, max_iterations: int, smooth: float = SMOOTH
) -> tuple[Floats, Floats]:
    """(coefficients [columns, classes], intercepts [classes]) from vectors [n, columns] and labels [n], 0 and up.

    The mean surprise plus the squared length of the coefficients / (2 n inverse_regularisation) is least. With two
    classes it is the length of their difference that counts, as in scikit-learn.
    """
    classes = int(labels.max()) + 1
    bounds = np.linspace(0, len(labels), PARTS + 1).astype(np.int64)
    parts = [Part(vectors[low:high], labels[low:high]) for low, high in pairwise(bounds)]
    strength = (2.0 if classes == 2 else 1.0) / (inverse_regularisation * len(labels))
    with ThreadPoolExecutor(PARTS) as threads:

        def surprise(flat: Vector) -> tuple[float, Vector]:
            weights = flat.reshape(vectors.shape[1] + 1, classes)
            single = weights.astype(np.float32)
            found = list(threads.map(lambda part: part.surprise(single), parts))
            loss = sum(one for one, _ in found) / len(labels) + strength / 2.0 * float((weights[:-1] ** 2).sum())
            slope = np.asarray(np.sum([one for _, one in found], axis=0, dtype=np.float64)) / len(labels)
            slope[:-1] += strength * weights[:-1]
            return loss, slope.ravel()

        start = np.zeros((vectors.shape[1] + 1) * classes)
        found = minimize(
            surprise,
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": max_iterations, "maxls": TRIES, "gtol": smooth, "ftol": 64 * np.finfo(float).eps},
        ).x
    weights = found.reshape(-1, classes).astype(np.float32)
    return weights[:-1], weights[-1]


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the prompts."""

    vectors: Matrix
    labels: Ints

    def surprise(self, weights: Floats) -> tuple[float, Floats]:
        """Sum of -log P(label), and its slope in `weights` [columns + 1, classes], the intercepts last."""
        logits = self.vectors @ weights[:-1] + weights[-1]
        rows = np.arange(len(self.labels))
        totals = logsumexp(logits, axis=1)
        loss = float((totals - logits[rows, self.labels]).sum(dtype=np.float64))
        errors = np.exp(logits - totals[:, np.newaxis])
        errors[rows, self.labels] -= 1.0
        return loss, np.vstack((self.vectors.T @ errors, errors.sum(axis=0, keepdims=True)))
