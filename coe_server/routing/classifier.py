"""Step one: vector -> calibrated probability of each category. numpy only; knows nothing of text or experts.

Every model begins with one linear map of the sparse vector; what follows is small and dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from coe_server.routing.calibration import Calibration
from coe_server.routing.features import Floats, SparseVector

LEAST_SHARE = 1e-6  # of the votes of neighbours: a logarithm needs more than nothing

Vector = npt.NDArray[np.float64]


class CategoryModel(Protocol):
    """A classifier that scikit-learn fitted, as plain arrays."""

    @property
    def projection(self) -> Floats:
        """[columns, r]: the linear map that the model begins with."""

    def logits(self, projected: npt.NDArray[np.floating]) -> Vector:
        """[n, categories] from projected vectors [n, r]."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model and what makes its logits probabilities."""

    model: CategoryModel
    calibration: Calibration

    def probabilities(self, vector: SparseVector) -> Vector:
        """P(category), summing to 1."""
        return self.of_projected(vector.times(self.model.projection))

    def of_projected(self, projected: npt.NDArray[np.floating]) -> Vector:
        """The same of a vector that went through the model's projection, [r]."""
        (probabilities,) = self.calibration.probabilities(self.model.logits(projected[np.newaxis]))
        return np.asarray(probabilities)


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Logistic regression or linear SVM: `coefficients` [columns, categories], `intercepts` [categories]."""

    coefficients: Floats
    intercepts: Floats

    @property
    def projection(self) -> Floats:
        return self.coefficients

    def logits(self, projected: npt.NDArray[np.floating]) -> Vector:
        return np.asarray(projected + self.intercepts, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class NeighbourModel:
    """Shares of the votes of the nearest `prototypes` [n, r] (each of length 1, with its category in `labels`)."""

    projection: Floats
    prototypes: Floats
    labels: npt.NDArray[np.int32]
    neighbours: int
    categories: int

    def logits(self, projected: npt.NDArray[np.floating]) -> Vector:
        # the prompt's own length does not change who is nearest
        similarities = projected @ self.prototypes.T
        count = min(self.neighbours, similarities.shape[1])
        nearest = np.argpartition(similarities, similarities.shape[1] - count, axis=1)[:, -count:]
        rows = np.repeat(np.arange(len(nearest)), count) * self.categories
        votes = np.bincount(rows + self.labels[nearest].ravel(), minlength=len(nearest) * self.categories)
        return np.asarray(np.log(np.maximum(votes.reshape(-1, self.categories) / count, LEAST_SHARE)))


@dataclass(frozen=True, slots=True)
class PerceptronModel:
    """One hidden layer of rectifiers: `hidden` [r, h], `hidden_intercepts` [h], then `coefficients` [h, categories]."""

    projection: Floats
    hidden: Floats
    hidden_intercepts: Floats
    coefficients: Floats
    intercepts: Floats

    def logits(self, projected: npt.NDArray[np.floating]) -> Vector:
        active = np.maximum(projected @ self.hidden + self.hidden_intercepts, 0.0)
        return np.asarray(active @ self.coefficients + self.intercepts, dtype=np.float64)
