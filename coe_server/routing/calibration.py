"""Logits -> probabilities that mean what they say: 0.8 is right eight times in ten. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


class Calibration(Protocol):
    """Learned on prompts that the classifier was not fitted on."""

    def probabilities(self, logits: Vector) -> Vector:
        """[n, categories], each row summing to 1, from logits [n, categories]."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """One number for all categories; above 1 softens."""

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
    """A rising curve through the points (`logits`, `shares`), both [categories, points], for each category."""

    logits: Vector
    shares: Vector

    def probabilities(self, logits: Vector) -> Vector:
        columns = [np.interp(logits[:, c], self.logits[c], self.shares[c]) for c in range(logits.shape[1])]
        return summing_to_one(np.stack(columns, axis=1))


def softmax(logits: npt.NDArray[np.floating]) -> Vector:
    """Probabilities along the last axis."""
    shifted = np.asarray(logits, dtype=np.float64)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def summing_to_one(shares: Vector) -> Vector:
    """Each row divided by its sum; a row of zeros says nothing and becomes even."""
    totals = shares.sum(axis=1, keepdims=True)
    even = 1.0 / shares.shape[1]
    return np.where(totals > 0.0, shares / np.where(totals > 0.0, totals, 1.0), even)


def normalised_entropy(probabilities: Vector) -> Vector:
    """0 (sure) to 1 (no idea), along the last axis; 0 where there is one category only."""
    categories = probabilities.shape[-1]
    if categories < 2:
        return np.zeros(probabilities.shape[:-1])
    logs = np.log(np.maximum(probabilities, 1e-300))
    return np.asarray(np.clip(-(probabilities * logs).sum(axis=-1) / np.log(categories), 0.0, 1.0))
