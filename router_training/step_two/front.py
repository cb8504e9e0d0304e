"""The front of score against mean active parameters: every mapping that some budget asks for. Pure."""

from __future__ import annotations

import numpy as np

from router_training.step_two.mapping import solve
from router_training.step_two.problem import SLACK, Problem, Solution


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
