"""Which expert answers which category: the best mapping under all limits, with how far from the optimum. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import OptimizeResult

from router_training.step_two import program
from router_training.step_two.expert_sets import improved_set
from router_training.step_two.pricing import choices, fitted_multiplier
from router_training.step_two.problem import Ints, Problem, Solution, judged, solution

PROVEN = 1e-9  # a gap that is rounding
WHOLE_PAIRS = 5000  # of category and expert, up to which the whole program is tried where its relaxation left a gap
IMPOSSIBLE = -1e6  # the value of a forbidden pair: worse than any score, and still a number to add up
EXCHANGES = 4  # searches for a better set of experts, each at the price that the last one's budget asked for


def solve(problem: Problem, active_params_b: float | None = None, multiplier: float = 0.0) -> Solution | None:
    """The mapping with the most score (less multiplier * active parameters) within all limits; None: there is none."""
    if active_params_b is None and not problem.joins_categories:
        return _row_by_row(problem, multiplier)
    result = program.solved(problem, active_params_b, multiplier, whole_pairs=not problem.joins_categories)
    if result.status == program.INFEASIBLE:
        return None
    bound = _bound_of(result)
    if not problem.joins_categories:
        nothing = result.x is None
        chosen = _at_a_price(problem, active_params_b, multiplier) if nothing else program.read(problem, result.x)
        return judged(problem, chosen, multiplier, bound)
    if result.status != program.SOLVED:
        bound = min(bound, _bound_without_hosting(problem, active_params_b, multiplier))
    hosted = program.hosted_in(problem, result.x)
    return _with_hosted_set(problem, active_params_b, multiplier, hosted=hosted, bound=bound)


def _bound_of(result: OptimizeResult) -> float:
    """What no mapping exceeds; infinite where HiGHS had no time to say."""
    return np.inf if result.mip_dual_bound is None else -float(result.mip_dual_bound)


def _row_by_row(problem: Problem, multiplier: float) -> Solution | None:
    """With nothing to join the categories each has its own best pair."""
    if not problem.possible.any(axis=1).all():
        return None
    allowed = np.where(problem.possible, problem.scores, -np.inf)
    return solution(problem, choices(allowed, problem.active_params_b, multiplier), gap=0.0)


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
    result = program.solved(problem, active_params_b, multiplier, whole_pairs=True)
    if result.x is None:
        return best
    bound = min(bound, _bound_of(result))
    found = judged(problem, program.read(problem, result.x), multiplier, bound)
    return found if best is None else min(found, judged(problem, best.experts, multiplier, bound), key=lambda s: s.gap)


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
    return None if found is None else judged(problem, found.experts, multiplier, bound)


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
