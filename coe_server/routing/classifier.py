"""Vector -> calibrated probability of each category, and corrections of the experts' scores. numpy only.

Every model begins with a linear map of the sparse vector; the rest is small and dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from coe_server.routing.features import Floats, SparseVector

LEAST_SHARE = 1e-6  # of neighbours' votes, so that its logarithm is finite

Vector = npt.NDArray[np.float64]


class CategoryModel(Protocol):
    """A classifier fitted by scikit-learn, as plain arrays."""

    @property
    def projection(self) -> Floats:
        """[columns, r]: the first linear map."""

    def logits(self, projected: npt.NDArray[np.floating]) -> Vector:
        """[n, categories] from projected vectors [n, r]."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model and its calibration."""

    model: CategoryModel
    calibration: Calibration

    def probabilities(self, vector: SparseVector) -> Vector:
        """P(category), summing to 1."""
        return self.of_projected(vector.times(self.model.projection))

    def of_projected(self, projected: npt.NDArray[np.floating]) -> Vector:
        """The same for a projected vector [r]."""
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
    """k nearest neighbours: vote shares of the nearest `prototypes` [n, r] (of length 1; categories in `labels`)."""

    projection: Floats
    prototypes: Floats
    labels: npt.NDArray[np.int32]
    neighbours: int
    categories: int

    def logits(self, projected: npt.NDArray[np.floating]) -> Vector:
        # the prompt's length does not change the order of its neighbours
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


class Calibration(Protocol):
    """A calibration, learned on held-out prompts."""

    def probabilities(self, logits: Vector) -> Vector:
        """[n, categories], each row summing to 1, from logits [n, categories]."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """Temperature scaling; values above 1 soften."""

    temperature: float = 1.0

    def probabilities(self, logits: Vector) -> Vector:
        return softmax(logits / self.temperature)


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """Platt's curve for each category, 1 / (1 + exp(slope * logit + offset)); `slopes` and `offsets` [categories]."""

    slopes: Vector
    offsets: Vector

    def probabilities(self, logits: Vector) -> Vector:
        exponents = np.clip(logits * self.slopes + self.offsets, -500.0, 500.0)
        return summing_to_one(1.0 / (1.0 + np.exp(exponents)))


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Isotonic regression per category, through the points (`logits`, `shares`), both [categories, points]."""

    logits: Vector
    shares: Vector

    def probabilities(self, logits: Vector) -> Vector:
        columns = [np.interp(logits[:, c], self.logits[c], self.shares[c]) for c in range(logits.shape[1])]
        return summing_to_one(np.stack(columns, axis=1))


def softmax(logits: npt.NDArray[np.floating]) -> Vector:
    """Probabilities along the last axis."""
    powers = np.asarray(logits, dtype=np.float64)
    powers = np.exp(powers - np.maximum.reduce(powers, axis=-1, keepdims=True))
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return powers


def summing_to_one(shares: Vector) -> Vector:
    """Each row divided by its sum; a row of zeros becomes uniform."""
    totals = shares.sum(axis=1, keepdims=True)
    even = 1.0 / shares.shape[1]
    return np.where(totals > 0.0, shares / np.where(totals > 0.0, totals, 1.0), even)


def normalised_entropy(probabilities: Vector) -> Vector:
    """Entropy from 0 (certain) to 1 (uniform) along the last axis; 0 with one category."""
    categories = probabilities.shape[-1]
    if categories < 2:
        return np.zeros(probabilities.shape[:-1])
    logs = np.log(np.maximum(probabilities, 1e-300))
    return np.asarray(np.clip(-(probabilities * logs).sum(axis=-1) / np.log(categories), 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Corrections:
    """`coefficients` [columns, experts]. Corrections sum to about 0 over the experts, so they only shift choices."""

    coefficients: Floats


@dataclass(frozen=True, slots=True)
class Readout:
    """`matrix` [columns, r + experts]: the classifier's projection and the corrections' coefficients, concatenated."""

    classifier: Classifier
    matrix: Floats
    width: int

    @classmethod
    def of(cls, classifier: Classifier, corrections: Corrections | None) -> Readout:
        projection = classifier.model.projection
        if corrections is None:
            return cls(classifier, projection, projection.shape[1])
        return cls(classifier, np.hstack((projection, corrections.coefficients)), projection.shape[1])

    def read(self, vector: SparseVector) -> tuple[Vector, list[float]]:
        """(P(category), corrections [experts]); corrections are empty if the artifact has none."""
        both = vector.times(self.matrix)
        width = self.width
        return self.classifier.of_projected(both[:width]), both[width:].tolist()
