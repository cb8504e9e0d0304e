"""What a choice of experts gains over not routing at all. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router_training.data.dataset import Dataset
from router_training.evaluating import metrics
from router_training.evaluating.metrics import Bootstrap, Hull

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Judged:
    """Prompts with an outcome from every expert, and the experts' sizes; all means are weighted."""

    dataset: Dataset
    active_params_b: Vector

    @property
    def outcomes(self) -> Vector:
        return self.dataset.scores

    @property
    def weights(self) -> Vector:
        return self.dataset.weights

    @property
    def expert_means(self) -> Vector:
        return np.array([metrics.mean(column, self.weights) for column in self.outcomes.T])

    @property
    def best_single(self) -> int:
        """In hindsight, on these prompts."""
        return int(self.expert_means.argmax())

    @property
    def hull(self) -> Hull:
        """The zero router."""
        return metrics.upper_hull(self.active_params_b, self.expert_means)

    def taken(self, chosen: Ints) -> Vector:
        """[n]: the score of each prompt's chosen expert."""
        return np.asarray(self.outcomes[np.arange(len(chosen)), chosen])

    def mean_active_params_b(self, chosen: Ints) -> float:
        return metrics.mean(self.active_params_b[chosen], self.weights)


@dataclass(frozen=True, slots=True)
class Gain:
    """A mean score and what it is above the alternative, with a 95 % interval."""

    score: float
    gain: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        return {"score": self.score, "gain": self.gain, "gain_ci95": [self.low, self.high]}


def unlimited_gain(judged: Judged, chosen: Ints, bootstrap: Bootstrap) -> Gain:
    """Over the best single expert in hindsight."""
    taken = judged.taken(chosen)
    difference = taken - judged.outcomes[:, judged.best_single]
    low, high = bootstrap.interval(difference[:, np.newaxis], judged.weights, lambda means: float(means[0]))
    return Gain(metrics.mean(taken, judged.weights), metrics.mean(difference, judged.weights), low, high)


def budget_gain(judged: Judged, chosen: Ints, bootstrap: Bootstrap) -> Gain:
    """Over the zero router at the mean cost that was spent; each resample has its own zero router."""
    taken, spent = judged.taken(chosen), judged.active_params_b[chosen]
    columns = np.column_stack((taken, spent, judged.outcomes))

    def above_the_hull(means: Vector) -> float:
        hull = metrics.upper_hull(judged.active_params_b, means[2:])
        return float(means[0]) - hull.score_at(float(means[1]))

    gain = above_the_hull(judged.weights @ columns / judged.weights.sum())
    low, high = bootstrap.interval(columns, judged.weights, above_the_hull)
    return Gain(metrics.mean(taken, judged.weights), gain, low, high)
