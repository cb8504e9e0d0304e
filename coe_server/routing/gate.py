"""Is this prompt like the training data? Mean similarity to its nearest prototypes, against a threshold.

Off their training data all trained routers lose to a constant, and low confidence does not warn of it:
distance does. Knows nothing of categories or experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coe_server.routing.features import Floats, SparseVector


@dataclass(frozen=True, slots=True)
class Gate:
    """`projection` [columns, dimensions] onto the training prompts' main directions; `prototypes`
    [prompts, dimensions] of length 1 in there.

    The prompt keeps its own length: what the main directions cannot express makes it less similar.
    """

    projection: Floats
    prototypes: Floats
    neighbours: int
    threshold: float

    def similarity(self, vector: SparseVector) -> float:
        """Mean cosine to the nearest prototypes, -1 to 1; 0 for a prompt without one known n-gram."""
        length = float(np.sqrt(vector.weights @ vector.weights))
        if length == 0.0:
            return 0.0
        place = vector.weights @ self.projection.take(vector.columns, axis=0)
        return float(nearest_mean((self.prototypes @ place)[np.newaxis], self.neighbours)[0]) / length


def nearest_mean(similarities: Floats, neighbours: int) -> Floats:
    """The mean of each row's largest `neighbours` values (of all, where there are fewer)."""
    count = min(neighbours, similarities.shape[1])
    largest = np.partition(similarities, similarities.shape[1] - count, axis=1)[:, -count:]
    return np.asarray(largest.mean(axis=1), dtype=np.float32)
