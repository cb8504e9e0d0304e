"""What is to be mapped under which limits, and what a mapping gives. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SLACK = 1e-9  # relative: a budget is met up to rounding


@dataclass(frozen=True, slots=True)
class Problem:
    """`scores` [categories, experts], `shares` of traffic [categories], parameters in billions [experts]."""

    scores: Vector
    shares: Vector
    active_params_b: Vector
    total_params_b: Vector
    hosted_params_b: float | None = None
    max_experts: int | None = None
    pins: Mapping[int, int] = field(default_factory=dict)
    bans: frozenset[tuple[int, int]] = frozenset()

    @property
    def joins_categories(self) -> bool:
        """Does one category's expert limit another's, budget apart?"""
        return self.hosted_params_b is not None or self.max_experts is not None

    @property
    def possible(self) -> npt.NDArray[np.bool_]:
        """[categories, experts]: the pairs that pins and bans leave."""
        pairs = np.ones(self.scores.shape, dtype=bool)
        for category, expert in self.pins.items():
            pairs[category] = False
            pairs[category, expert] = True
        for category, expert in self.bans:
            pairs[category, expert] = False  # of a pinned pair too: then there is no solution
        return pairs


@dataclass(frozen=True, slots=True)
class Solution:
    """`experts` [categories] and what they give; `gap` is how far the optimum may lie above, as a share."""

    experts: Ints
    score: float
    mean_active_params_b: float
    gap: float

    @property
    def used(self) -> Ints:
        return np.unique(self.experts)


def solution(problem: Problem, chosen: Ints, gap: float) -> Solution:
    """What choosing these experts [categories] gives."""
    scores, costs = problem.scores[np.arange(len(chosen)), chosen], problem.active_params_b[chosen]
    return Solution(chosen, _mean(scores, problem.shares), _mean(costs, problem.shares), gap)


def _mean(values: Vector, shares: Vector) -> float:
    """By shares that sum to 1 up to rounding, which never leads out of the values."""
    return float(np.clip(shares @ values, values.min(), values.max()))


def judged(problem: Problem, chosen: Ints, multiplier: float, bound: float) -> Solution:
    """The same with how far the optimum, which is at most `bound` (infinite: no program said), may lie above it."""
    values = np.where(problem.possible, problem.scores - multiplier * problem.active_params_b, -np.inf)
    bound = min(bound, float(problem.shares @ values.max(axis=1)))  # each category at its best
    found = solution(problem, chosen, gap=0.0)
    reached = found.score - multiplier * found.mean_active_params_b
    return replace(found, gap=max(bound - reached, 0.0) / max(abs(reached), 1e-12))
