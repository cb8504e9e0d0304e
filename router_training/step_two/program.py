"""The mixed-integer linear program of a mapping, as HiGHS is given it. Pure.

The program of "Composition of Experts" (two-step routing under a parameter budget), with a cap on what is hosted, on
the number of experts, and pinned and forbidden pairs.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from router_training.step_two.problem import Ints, Problem, Vector

SECONDS = 5.0  # for one program; what is not proven by then is returned with its gap
SOLVED, INFEASIBLE = 0, 2  # HiGHS's status


def solved(problem: Problem, active_params_b: float | None, multiplier: float, whole_pairs: bool) -> OptimizeResult:
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


def read(problem: Problem, x: Vector) -> Ints:
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
