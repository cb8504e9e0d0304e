"""Which expert answers which category: a mixed-integer linear program, and its front. Pure.

The program of "Composition of Experts" (two-step routing under a parameter budget), with a cap on what is
hosted, on the number of experts, and pinned and forbidden pairs. Solved by HiGHS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, milp

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SLACK = 1e-9  # relative: a budget is met up to rounding
PLATEAU = 0.01  # relative change of cost within which a multiplier is moved to safe ground


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


def solve(problem: Problem, active_params_b: float | None = None, multiplier: float = 0.0) -> Solution | None:
    """The mapping with the most score (less multiplier * active parameters) within all limits; None: there is none."""
    if active_params_b is None and not problem.joins_categories:
        return _row_by_row(problem, multiplier)
    categories, experts = problem.scores.shape
    gain = problem.shares[:, np.newaxis] * (problem.scores - multiplier * problem.active_params_b)
    costs = np.concatenate((-gain.ravel(), np.zeros(experts)))
    result = milp(
        costs,
        integrality=np.ones(len(costs), dtype=np.int64),
        bounds=_bounds(problem),
        constraints=_constraints(problem, active_params_b),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        return None
    chosen = result.x[: categories * experts].reshape(categories, experts).argmax(axis=1)
    return _solution(problem, chosen, float(result.mip_gap or 0.0))


def front(problem: Problem) -> list[Solution]:
    """Every supported point: the corners of the hull of score against mean active parameters, cheapest first."""
    best, cheapest = solve(problem), _cheapest(problem)
    if best is None or cheapest is None:
        return []
    if best.score - cheapest.score <= 1e-12:
        return [cheapest]
    best = solve(problem, active_params_b=_least_cost_at(problem, best)) or best
    return [cheapest, *_between(problem, cheapest, best), best]


def fitted_multiplier(expected: Vector, active_params_b: Vector, weights: Vector, budget: float | None) -> float:
    """The multiplier under which soft mixing meets the budget: `expected` [n, experts] (-inf: ruled out).

    The smallest that does, moved to the middle of the range in which the mean cost hardly changes, so that
    prompts a little unlike these do not tip over. The budget must be at least the smallest expert's size.
    """
    if budget is None or mean_cost(expected, active_params_b, weights, 0.0) <= budget * (1.0 + SLACK):
        return 0.0
    assert budget >= active_params_b.min(), "no multiplier can make the smallest expert smaller"
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
    values = expected - multiplier * active_params_b
    return np.asarray(by_size[values[:, by_size].argmax(axis=1)])


def mean_cost(expected: Vector, active_params_b: Vector, weights: Vector, multiplier: float) -> float:
    """Mean active parameters of soft mixing at this multiplier, in billions."""
    spent = active_params_b[choices(expected, active_params_b, multiplier)]
    return float(np.average(spent, weights=weights))


def _smallest_within(expected: Vector, active_params_b: Vector, weights: Vector, limit: float) -> float:
    """Bisection: the mean cost never rises with the multiplier."""
    sizes = np.unique(active_params_b)
    possible = expected[np.isfinite(expected)]
    low, high = 0.0, 1.01 * float(np.ptp(possible)) / float(np.diff(sizes).min()) + 1e-12
    for _ in range(60):
        middle = (low + high) / 2.0
        if mean_cost(expected, active_params_b, weights, middle) <= limit:
            high = middle
        else:
            low = middle
    return high


def _row_by_row(problem: Problem, multiplier: float) -> Solution | None:
    """With nothing to join the categories each has its own best pair."""
    if not problem.possible.any(axis=1).all():
        return None
    allowed = np.where(problem.possible, problem.scores, -np.inf)
    return _solution(problem, choices(allowed, problem.active_params_b, multiplier), gap=0.0)


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


def _solution(problem: Problem, chosen: Ints, gap: float) -> Solution:
    rows = np.arange(len(chosen))
    score = float(problem.shares @ problem.scores[rows, chosen])
    return Solution(chosen, score, float(problem.shares @ problem.active_params_b[chosen]), gap)


def _cheapest(problem: Problem) -> Solution | None:
    """The least mean active parameters, and the most score at that."""
    flat = Problem(
        np.zeros_like(problem.scores),
        problem.shares,
        problem.active_params_b,
        problem.total_params_b,
        problem.hosted_params_b,
        problem.max_experts,
        problem.pins,
        problem.bans,
    )
    least = solve(flat, multiplier=1.0 / float(problem.active_params_b.max()))
    if least is None:
        return None
    return solve(problem, active_params_b=least.mean_active_params_b * (1.0 + SLACK)) or least


def _least_cost_at(problem: Problem, best: Solution) -> float:
    """The cost of the best score once ties in score have gone to the cheaper mapping."""
    tie_break = 1e-7 / float(problem.active_params_b.max())
    cheaper = solve(problem, multiplier=tie_break)
    return cheaper.mean_active_params_b * (1.0 + SLACK) if cheaper is not None else best.mean_active_params_b


def _between(problem: Problem, cheap: Solution, dear: Solution) -> list[Solution]:
    """The corners strictly above the line from `cheap` to `dear`, found by looking furthest above it."""
    step = dear.mean_active_params_b - cheap.mean_active_params_b
    if step <= SLACK * dear.mean_active_params_b:
        return []
    slope = (dear.score - cheap.score) / step
    furthest = solve(problem, multiplier=slope)
    if furthest is None:
        return []
    above = furthest.score - cheap.score - slope * (furthest.mean_active_params_b - cheap.mean_active_params_b)
    if above <= 1e-9:
        return []
    return [*_between(problem, cheap, furthest), furthest, *_between(problem, furthest, dear)]
