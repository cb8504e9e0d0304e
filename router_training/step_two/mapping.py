"""Which expert answers which category: a mixed-integer linear program, and its front. Pure.

The program of "Composition of Experts" (two-step routing under a parameter budget), with a cap on what is
hosted, on the number of experts, and pinned and forbidden pairs. Solved by HiGHS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from router_training.step_two.expert_sets import improved_set

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SLACK = 1e-9  # relative: a budget is met up to rounding
SECONDS = 5.0  # for one program; what is not proven by then is returned with its gap
SOLVED, INFEASIBLE = 0, 2  # HiGHS's status
PROVEN = 1e-9  # a gap that is rounding
WHOLE_PAIRS = (
    5000  # pairs of category and expert up to which the whole program is tried where its relaxation left a gap
)
IMPOSSIBLE = -1e6  # the value of a forbidden pair: worse than any score, and still a number to add up
EXCHANGES = 4  # searches for a better set of experts, each at the price that the last one's budget asked for
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
    result = _program(problem, active_params_b, multiplier, whole_pairs=not problem.joins_categories)
    if result.status == INFEASIBLE:
        return None
    bound = np.inf if result.mip_dual_bound is None else -float(result.mip_dual_bound)
    if not problem.joins_categories:
        chosen = _at_a_price(problem, active_params_b, multiplier) if result.x is None else _read(problem, result.x)
        return _judged(problem, chosen, multiplier, bound)
    if result.status != SOLVED:
        bound = min(bound, _bound_without_hosting(problem, active_params_b, multiplier))
    return _with_hosted_set(problem, active_params_b, multiplier, hosted=_hosted(problem, result.x), bound=bound)


def _bound_without_hosting(problem: Problem, active_params_b: float | None, multiplier: float) -> float:
    """What could be reached if every expert were hosted: a bound that needs no luck with the clock."""
    free = solve(replace(problem, hosted_params_b=None, max_experts=None), active_params_b, multiplier)
    if free is None:
        return np.inf
    reached = free.score - multiplier * free.mean_active_params_b
    return reached + free.gap * abs(reached)


def _at_a_price(problem: Problem, active_params_b: float | None, multiplier: float) -> Ints:
    """Each category's best expert at the price that meets the budget: no optimum, but there at once."""
    everybody = np.arange(len(problem.total_params_b))
    price = multiplier + _price_within(problem, active_params_b, multiplier, everybody)
    return choices(np.where(problem.possible, problem.scores, -np.inf), problem.active_params_b, price)


def _with_hosted_set(
    problem: Problem, active_params_b: float | None, multiplier: float, *, hosted: Ints, bound: float
) -> Solution | None:
    """Sets of experts, exchanged until nothing gains; then, if that is not proven to be the best, the whole program."""
    best = _within(problem, active_params_b, multiplier, hosted, bound)
    if best is None or best.gap > PROVEN:
        for start in (hosted, np.array([], dtype=np.int64)):
            best = _exchanged(problem, active_params_b, multiplier, start=start, best=best, bound=bound)
    if problem.scores.size > WHOLE_PAIRS or (best is not None and best.gap <= PROVEN):
        return best
    result = _program(problem, active_params_b, multiplier, whole_pairs=True)
    if result.x is None:
        return best
    bound = min(bound, -float(result.mip_dual_bound))
    found = _judged(problem, _read(problem, result.x), multiplier, bound)
    return found if best is None else min(found, _judged(problem, best.experts, multiplier, bound), key=lambda s: s.gap)


def _exchanged(
    problem: Problem,
    active_params_b: float | None,
    multiplier: float,
    *,
    start: Ints,
    best: Solution | None,
    bound: float,
) -> Solution | None:
    """`best`, or what exchanging experts from `start` on finds above it."""
    hosted = start
    room = problem.hosted_params_b if problem.hosted_params_b is not None else np.inf
    most = problem.max_experts or len(problem.total_params_b)
    for _ in range(EXCHANGES):
        price = multiplier + _price_within(problem, active_params_b, multiplier, hosted)
        values = problem.shares[:, np.newaxis] * (problem.scores - price * problem.active_params_b)
        values = np.where(problem.possible, values, IMPOSSIBLE)
        found_set = improved_set(values, problem.total_params_b, room, most, hosted)
        found = _within(problem, active_params_b, multiplier, found_set, bound)
        if found is not None and (best is None or found.gap < best.gap):
            best = found
        if np.array_equal(found_set, hosted):
            break
        hosted = found_set
    return best


def _within(
    problem: Problem, active_params_b: float | None, multiplier: float, hosted: Ints, bound: float
) -> Solution | None:
    """The best mapping onto these experts alone; None if they cannot keep to the budget."""
    others = np.setdiff1d(np.arange(len(problem.total_params_b)), hosted)
    possible = problem.possible
    possible[:, others] = False
    narrow = replace(
        problem,
        hosted_params_b=None,
        max_experts=None,
        pins={},
        bans=frozenset((int(c), int(e)) for c, e in zip(*np.nonzero(~possible), strict=True)),
    )
    found = solve(narrow, active_params_b, multiplier)
    return None if found is None else _judged(problem, found.experts, multiplier, bound)


def _price_within(problem: Problem, active_params_b: float | None, multiplier: float, hosted: Ints) -> float:
    """What active parameters cost more than `multiplier`, so that the mapping onto these experts meets the budget."""
    hosted = hosted if len(hosted) else np.arange(len(problem.total_params_b))
    if active_params_b is None:
        return 0.0
    allowed = np.where(problem.possible[:, hosted], problem.scores[:, hosted], -np.inf)
    sizes = problem.active_params_b[hosted]
    if active_params_b < sizes.min() or (sizes == sizes[0]).all():
        return 0.0
    priced = allowed - multiplier * sizes
    return fitted_multiplier(priced, sizes, problem.shares, active_params_b)


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


def _program(problem: Problem, active_params_b: float | None, multiplier: float, whole_pairs: bool) -> OptimizeResult:
    """HiGHS's answer. Without `whole_pairs` only the set of experts is whole, which is much easier to prove."""
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


def _read(problem: Problem, x: Vector) -> Ints:
    categories, experts = problem.scores.shape
    return np.asarray(x[: categories * experts].reshape(categories, experts).argmax(axis=1))


def _hosted(problem: Problem, x: Vector | None) -> Ints:
    """The experts in use; none where HiGHS found no solution in time."""
    if x is None:
        return np.array([], dtype=np.int64)
    return np.flatnonzero(x[problem.scores.size :] > 0.5)


def _judged(problem: Problem, chosen: Ints, multiplier: float, bound: float) -> Solution:
    """The solution with how far the optimum may lie above it."""
    solution = _solution(problem, chosen, gap=0.0)
    reached = solution.score - multiplier * solution.mean_active_params_b
    return replace(solution, gap=max(bound - reached, 0.0) / max(abs(reached), 1e-12))


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
