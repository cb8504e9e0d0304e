"""Step one: sparse vector -> calibrated probability of each category.

Multinomial logistic regression with one temperature. Knows nothing of text or experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.features import Floats, SparseVector


@dataclass(frozen=True, slots=True)
class Classifier:
    """`coefficients` [columns, categories] and `intercepts` [categories]; a temperature above 1 softens."""

    coefficients: Floats
    intercepts: Floats
    temperature: float

    def probabilities(self, vector: SparseVector) -> npt.NDArray[np.float64]:
        """P(category), summing to 1."""
        rows = self.coefficients.take(vector.columns, axis=0)
        return softmax((vector.weights @ rows + self.intercepts) / self.temperature)


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Probabilities along the last axis."""
    shifted = np.asarray(logits, dtype=np.float64)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
