"""The mixed-integer linear program of a mapping, for HiGHS, and the multiplier that keeps a budget. Pure.

The program of "Composition of Experts" (two-step routing under a parameter budget), with a cap on the hosted
parameters and on the number of experts, and with pinned and forbidden pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

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
        """True if a limit other than the budget joins the categories' choices."""
        return self.hosted_params_b is not None or self.max_experts is not None

    @property
    def possible(self) -> npt.NDArray[np.bool_]:
        """[categories, experts]: the pairs that pins and bans allow."""
        pairs = np.ones(self.scores.shape, dtype=bool)
        for category, expert in self.pins.items():
            pairs[category] = False
            pairs[category, expert] = True
        for category, expert in self.bans:
            pairs[category, expert] = False  # a banned pair that is pinned as well leaves no solution
        return pairs


@dataclass(frozen=True, slots=True)
class Solution:
    """`experts` [categories] and their value; `gap` is the relative distance to the upper bound of the optimum."""

    experts: Ints
    score: float
    mean_active_params_b: float
    gap: float

    @property
    def used(self) -> Ints:
        return np.unique(self.experts)


def solution(problem: Problem, chosen: Ints, gap: float) -> Solution:
    """The value of choosing these experts [categories]."""
    scores, costs = problem.scores[np.arange(len(chosen)), chosen], problem.active_params_b[chosen]
    return Solution(chosen, _mean(scores, problem.shares), _mean(costs, problem.shares), gap)


def _mean(values: Vector, shares: Vector) -> float:
    """Weighted mean by shares that sum to 1 up to rounding, clipped to the range of the values."""
    return float(np.clip(shares @ values, values.min(), values.max()))


def judged(problem: Problem, chosen: Ints, multiplier: float, bound: float) -> Solution:
    """The same solution with its gap to `bound`, an upper bound of the optimum (infinite if unknown)."""
    values = np.where(problem.possible, problem.scores - multiplier * problem.active_params_b, -np.inf)
    bound = min(bound, float(problem.shares @ values.max(axis=1)))  # each category at its best
    found = solution(problem, chosen, gap=0.0)
    reached = found.score - multiplier * found.mean_active_params_b
    return replace(found, gap=max(bound - reached, 0.0) / max(abs(reached), 1e-12))


SECONDS = 5.0  # time limit of one program; a solution not proven optimal by then is returned with its gap
SOLVED, INFEASIBLE = 0, 2  # HiGHS's status


def solve_program(
    problem: Problem, active_params_b: float | None, multiplier: float, whole_pairs: bool
) -> OptimizeResult:
    """HiGHS's result. Without `whole_pairs` only the set of experts is integral, which is much faster to prove."""
    categories, experts = problem.scores.shape
    gain = problem.shares[:, np.newaxis] * (problem.scores - multiplier * problem.active_params_b)
    costs = np.concatenate((-gain.ravel(), np.zeros(experts)))
    pairs = np.full(categories * experts, int(whole_pairs))
    return milp(
        costs,
        integrality=np.concatenate((pairs, np.ones(experts, dtype=np.int64))),
        bounds=_bounds(problem),
        constraints=_constraints(problem, active_params_b),
        options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
    )


def experts_of(problem: Problem, x: Vector) -> Ints:
    """The expert of each category in a solution."""
    categories, experts = problem.scores.shape
    return np.asarray(x[: categories * experts].reshape(categories, experts).argmax(axis=1))


def hosted_in(problem: Problem, x: Vector | None) -> Ints:
    """The experts in use; none where HiGHS found no solution in time."""
    if x is None:
        return np.array([], dtype=np.int64)
    return np.flatnonzero(x[problem.scores.size :] > 0.5)


def _bounds(problem: Problem) -> Bounds:
    experts = problem.scores.shape[1]
    upper = np.concatenate((problem.possible.ravel().astype(np.float64), np.ones(experts)))
    return Bounds(np.zeros(len(upper)), upper)


def _constraints(problem: Problem, active_params_b: float | None) -> list[LinearConstraint]:
    """Variables: z[category, expert] row by row, then y[expert]."""
    categories, experts = problem.scores.shape
    pairs = categories * experts
    one_each = sp.hstack(
        (sp.kron(sp.eye_array(categories), np.ones((1, experts))), sp.csr_array((categories, experts)))
    )
    constraints = [LinearConstraint(one_each, 1, 1)]
    if problem.joins_categories:
        every_expert = sp.kron(np.ones((categories, 1)), sp.eye_array(experts))
        only_used = sp.hstack((sp.eye_array(pairs), -every_expert))
        constraints.append(LinearConstraint(only_used, -np.inf, 0))
    no_pairs = np.zeros(pairs)
    if problem.hosted_params_b is not None:
        row = np.concatenate((no_pairs, problem.total_params_b))
        constraints.append(_at_most(row, problem.hosted_params_b))
    if problem.max_experts is not None:
        constraints.append(_at_most(np.concatenate((no_pairs, np.ones(experts))), problem.max_experts))
    if active_params_b is not None:
        spent = np.outer(problem.shares, problem.active_params_b).ravel()
        constraints.append(_at_most(np.concatenate((spent, np.zeros(experts))), active_params_b))
    return constraints


def _at_most(row: Vector, limit: float) -> LinearConstraint:
    """Scaled to a limit of 1: HiGHS's tolerance is absolute, and experts may be of 0.001 B or 1000 B."""
    return LinearConstraint(row[np.newaxis] / limit, -np.inf, 1.0)


TIE_DECIMALS = 9  # values that are equal to this many decimals differ by rounding only
PLATEAU = 0.01  # relative change of cost that counts as a plateau of the multiplier


def fitted_multiplier(expected: Vector, active_params_b: Vector, weights: Vector, budget: float | None) -> float:
    """The multiplier under which soft mixing meets the budget: `expected` [n, experts] (-inf: ruled out).

    The smallest such multiplier lies at the edge of a range in which the mean cost hardly changes. The middle of that
    range is returned, so that slightly different prompts cost about the same. The budget must be at least the
    smallest expert's size.
    """
    if budget is None or mean_cost(expected, active_params_b, weights, 0.0) <= budget * (1.0 + SLACK):
        return 0.0
    assert budget >= active_params_b.min(), "the budget is below the smallest expert: no multiplier can meet it"
    lowest = _smallest_within(expected, active_params_b, weights, budget * (1.0 + SLACK))
    reached = mean_cost(expected, active_params_b, weights, lowest)
    if reached * (1.0 - PLATEAU) <= active_params_b.min():
        return 2.0 * lowest
    next_step = _smallest_within(expected, active_params_b, weights, reached * (1.0 - PLATEAU))
    middle = (lowest + next_step) / 2.0
    return middle if mean_cost(expected, active_params_b, weights, middle) <= budget else lowest


def choices(expected: Vector, active_params_b: Vector, multiplier: float) -> Ints:
    """The expert of most value for each prompt [n]; ties go to the smaller expert, then to the earlier one."""
    by_size = np.argsort(active_params_b, kind="stable")
    values = np.round(expected - multiplier * active_params_b, TIE_DECIMALS)
    return np.asarray(by_size[values[:, by_size].argmax(axis=1)])


def mean_cost(expected: Vector, active_params_b: Vector, weights: Vector, multiplier: float) -> float:
    """Mean active parameters of soft mixing at this multiplier, in billions."""
    spent = active_params_b[choices(expected, active_params_b, multiplier)]
    return float(np.average(spent, weights=weights))


def least_step(costs: Vector) -> float:
    """The smallest difference between two costs that is more than rounding; 1 where there is none."""
    steps = np.diff(np.unique(costs))
    real = steps[steps > SLACK * costs.max()]
    return float(real.min()) if len(real) else 1.0


def _smallest_within(expected: Vector, active_params_b: Vector, weights: Vector, limit: float) -> float:
    """The smallest multiplier within the limit, by bisection: the mean cost never rises with the multiplier."""
    possible = expected[np.isfinite(expected)]
    low, high = 0.0, 1.01 * float(np.ptp(possible)) / least_step(active_params_b) + 1e-12
    for _ in range(60):
        middle = (low + high) / 2.0
        if mean_cost(expected, active_params_b, weights, middle) <= limit:
            high = middle
        else:
            low = middle
    return high
