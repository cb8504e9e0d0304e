"""The best mapping of categories to experts under all limits, its distance from the optimum, and the cost front. Pure.

Where experts share a limit, sets of experts are searched by exchange before the whole program is solved.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import OptimizeResult

from router_training.assignment.milp import (
    INFEASIBLE,
    SLACK,
    SOLVED,
    Ints,
    Problem,
    Solution,
    Vector,
    choices,
    experts_of,
    fitted_multiplier,
    hosted_in,
    judged,
    solution,
    solve_program,
)

PROVEN = 1e-9  # a smaller gap is rounding
WHOLE_PAIRS = 5000  # most category-expert pairs for which the whole program is solved if its relaxation left a gap
IMPOSSIBLE = -1e6  # the value of a forbidden pair: worse than any score, and finite so that sums stay defined
EXCHANGES = 4  # searches for a better set of experts; each uses the price at which the last set met the budget


def solve(problem: Problem, active_params_b: float | None = None, multiplier: float = 0.0) -> Solution | None:
    """The mapping of highest score minus multiplier * active parameters within all limits; None if none exists."""
    if active_params_b is None and not problem.joins_categories:
        return _row_by_row(problem, multiplier)
    result = solve_program(problem, active_params_b, multiplier, whole_pairs=not problem.joins_categories)
    if result.status == INFEASIBLE:
        return None
    bound = _bound_of(result)
    if not problem.joins_categories:
        nothing = result.x is None
        chosen = _at_a_price(problem, active_params_b, multiplier) if nothing else experts_of(problem, result.x)
        return judged(problem, chosen, multiplier, bound)
    if result.status != SOLVED:
        bound = min(bound, _bound_without_hosting(problem, active_params_b, multiplier))
    hosted = hosted_in(problem, result.x)
    return _with_hosted_set(problem, active_params_b, multiplier, hosted=hosted, bound=bound)


def _bound_of(result: OptimizeResult) -> float:
    """An upper bound on the value of every mapping; infinite if HiGHS ran out of time."""
    return np.inf if result.mip_dual_bound is None else -float(result.mip_dual_bound)


def _row_by_row(problem: Problem, multiplier: float) -> Solution | None:
    """Without a limit shared by categories, each takes its best expert."""
    if not problem.possible.any(axis=1).all():
        return None
    allowed = np.where(problem.possible, problem.scores, -np.inf)
    return solution(problem, choices(allowed, problem.active_params_b, multiplier), gap=0.0)


def _bound_without_hosting(problem: Problem, active_params_b: float | None, multiplier: float) -> float:
    """The value with every expert hosted: an upper bound that does not depend on the solver's time."""
    free = solve(replace(problem, hosted_params_b=None, max_experts=None), active_params_b, multiplier)
    if free is None:
        return np.inf
    reached = free.score - multiplier * free.mean_active_params_b
    return reached + free.gap * abs(reached)


def _at_a_price(problem: Problem, active_params_b: float | None, multiplier: float) -> Ints:
    """Each category's best expert at the multiplier that meets the budget: fast, not optimal."""
    every_expert = np.arange(len(problem.total_params_b))
    price = multiplier + _price_within(problem, active_params_b, multiplier, every_expert)
    return choices(np.where(problem.possible, problem.scores, -np.inf), problem.active_params_b, price)


def _with_hosted_set(
    problem: Problem, active_params_b: float | None, multiplier: float, *, hosted: Ints, bound: float
) -> Solution | None:
    """Local search over sets of experts; then the whole program, if the result is not proven optimal."""
    best = _within(problem, active_params_b, multiplier, hosted, bound)
    if best is None or best.gap > PROVEN:
        for start in (hosted, np.array([], dtype=np.int64)):
            best = _exchanged(problem, active_params_b, multiplier, start=start, best=best, bound=bound)
    if problem.scores.size > WHOLE_PAIRS or (best is not None and best.gap <= PROVEN):
        return best
    result = solve_program(problem, active_params_b, multiplier, whole_pairs=True)
    if result.x is None:
        return best
    bound = min(bound, _bound_of(result))
    found = judged(problem, experts_of(problem, result.x), multiplier, bound)
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
    """The better of `best` and the result of exchanging experts, starting at `start`."""
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
    """The price of active parameters beyond `multiplier` at which the mapping onto these experts meets the budget."""
    hosted = hosted if len(hosted) else np.arange(len(problem.total_params_b))
    if active_params_b is None:
        return 0.0
    allowed = np.where(problem.possible[:, hosted], problem.scores[:, hosted], -np.inf)
    sizes = problem.active_params_b[hosted]
    if active_params_b < sizes.min() or (sizes == sizes[0]).all():
        return 0.0
    priced = allowed - multiplier * sizes
    return fitted_multiplier(priced, sizes, problem.shares, active_params_b)


LEAST_GAIN = 1e-12
ROUNDS = 100  # each adds, drops or exchanges one expert; far fewer are needed


def improved_set(values: Vector, total_params_b: Vector, hosted_params_b: float, most: int, start: Ints) -> Ints:
    """A set of experts at least as good as `start`, by single additions, removals and exchanges.

    `values` [categories, experts] is the value of a category at an expert; each category takes the best one
    in the set. The set has at most `most` experts and `hosted_params_b` parameters in all.
    """
    chosen = list(start)
    for _ in range(ROUNDS):
        step = _best_step(values, total_params_b, hosted_params_b, most, np.array(chosen, dtype=np.int64))
        if step is None:
            break
        chosen = step
    return np.array(sorted(chosen), dtype=np.int64)


def _best_step(values: Vector, sizes: Vector, hosted: float, most: int, chosen: Ints) -> list[int] | None:
    """The neighbouring set with the largest gain; None without a gain."""
    reached = float(values[:, chosen].max(axis=1).sum()) if len(chosen) else -np.inf
    best, found = reached + LEAST_GAIN, None
    for removed in (None, *chosen.tolist()):
        rest = [one for one in chosen.tolist() if one != removed]
        if len(rest) >= most:
            continue
        covered = values[:, rest].max(axis=1) if rest else np.full(len(values), -np.inf)
        room = hosted - sizes[rest].sum()
        gains = np.maximum(covered[:, np.newaxis], values).sum(axis=0)
        gains = np.where(sizes <= room, gains, -np.inf)
        added = int(gains.argmax())
        if gains[added] > best:
            best, found = float(gains[added]), [*rest, added]
    return found


def front(problem: Problem) -> list[Solution]:
    """Every supported point: the corners of the hull of score against mean active parameters, cheapest first."""
    best, cheapest = solve(problem), _cheapest(problem)
    if best is None or cheapest is None:
        return []
    if best.score - cheapest.score <= 1e-12:
        return [cheapest]
    best = solve(problem, active_params_b=_least_cost_at(problem, best)) or best
    if best.mean_active_params_b <= cheapest.mean_active_params_b * (1.0 + SLACK):
        return [best]
    return [cheapest, *_between(problem, cheapest, best), best]


def _cheapest(problem: Problem) -> Solution | None:
    """The best-scoring mapping among those with the least mean active parameters."""
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
    """The cost of the cheapest mapping with the best score."""
    tie_break = 1e-7 / float(problem.active_params_b.max())
    cheaper = solve(problem, multiplier=tie_break)
    return cheaper.mean_active_params_b * (1.0 + SLACK) if cheaper is not None else best.mean_active_params_b


def _between(problem: Problem, cheap: Solution, dear: Solution) -> list[Solution]:
    """The corners strictly above the line from `cheap` to `dear`: the furthest one, then those on each side of it."""
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
