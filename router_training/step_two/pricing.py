"""The multiplier: the score that a unit of cost must buy for the choice of most value to keep a budget. Pure."""

from __future__ import annotations

import numpy as np

from router_training.step_two.problem import SLACK, Ints, Vector

TIE_DECIMALS = 9  # values that are equal to so many differ by rounding
PLATEAU = 0.01  # relative change of cost within which a multiplier is moved to safe ground


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
    """Bisection: the mean cost never rises with the multiplier."""
    possible = expected[np.isfinite(expected)]
    low, high = 0.0, 1.01 * float(np.ptp(possible)) / least_step(active_params_b) + 1e-12
    for _ in range(60):
        middle = (low + high) / 2.0
        if mean_cost(expected, active_params_b, weights, middle) <= limit:
            high = middle
        else:
            low = middle
    return high
