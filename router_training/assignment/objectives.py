"""Step two: the score table, and the mapping and multiplier of each objective, from out-of-fold predictions. Pure.

A score is the mean of the category's own prompts, drawn towards the expert's overall mean. Prompts without a category
count with their probabilities: the scores are then fitted by least squares, so that probabilities times scores match
the outcomes. Averages by likeliest category would not do: they are mixtures already, and soft mixing would mix them
again.
A training run and the re-solving of an artifact share this; it knows nothing of configuration files or artifacts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from coe_server.errors import ConfigError, DatasetError
from coe_server.routing.budget import factor
from coe_server.routing.decision import GENERAL
from coe_server.routing.manifest import CostUnit, FrontPoint, ObjectiveEntry, ScoreEntry
from router_training.assignment.mapping import front, solve
from router_training.assignment.milp import SLACK, Problem, Solution, choices, fitted_multiplier
from router_training.data.dataset import Dataset

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_SHARE = 1e-4  # least share of traffic of a row: one without traffic would be mapped at random


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a mapping besides its budget; pins: category -> expert, bans: category -> experts."""

    hosted_params_b: float | None = None
    max_experts: int | None = None
    pins: Mapping[str, str] = field(default_factory=dict)
    bans: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Budget:
    """Mean cost per prompt, at most; `amount` None: no limit."""

    amount: float | None
    unit: CostUnit


@dataclass(frozen=True, slots=True)
class Grounds:
    """The data on which step two is solved.

    `scores` [categories + 1, experts]: the last row is for prompts outside the gate. `total_params_b` [experts].
    n unseen prompts: their `rows` [n] in `scores`, expected scores `expected` [n, experts], `weights` [n], and the
    `factors` [n] by which the multiplier is scaled for each.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    scores: Vector
    rows: Ints
    expected: Vector
    weights: Vector
    factors: Vector
    total_params_b: Vector
    limits: Limits
    soft: bool

    def problem(self, costs: Vector) -> Problem:
        """The program's data, with these costs of the experts."""
        total = self.weights.sum() or 1.0  # every prompt may have weight 0
        traffic = np.bincount(self.rows, self.weights, len(self.scores)) / total
        shares = np.maximum(traffic, LEAST_SHARE)
        # `general` is the last row unless it is a label of the data as well
        row_of = {GENERAL: len(self.categories)} | {name: row for row, name in enumerate(self.categories)}
        column_of = {name: column for column, name in enumerate(self.experts)}
        limits = self.limits
        return Problem(
            scores=self.scores,
            shares=shares / shares.sum(),
            active_params_b=costs,
            total_params_b=self.total_params_b,
            hosted_params_b=limits.hosted_params_b,
            max_experts=limits.max_experts,
            pins={row_of[name]: column_of[expert] for name, expert in limits.pins.items()},
            bans=frozenset((row_of[name], column_of[one]) for name, banned in limits.bans.items() for one in banned),
        )


def solve_objective(name: str, budget: Budget, costs: Vector, grounds: Grounds) -> ObjectiveEntry:
    """The objective's mapping (program) and its multiplier (soft mixing on unseen prompts).

    Raises ConfigError where no mapping fits the budget with the other limits.
    """
    problem = grounds.problem(costs)
    solution = solve(problem, active_params_b=budget.amount)
    if solution is None:
        limit = "the limits under mapping" if budget.amount is None else f"{budget.amount:g} and the other limits"
        raise ConfigError(f"objectives.{name}: no mapping fits {limit}; the cheapest expert costs {costs.min():g}")
    used = solution.used if problem.joins_categories else np.arange(len(grounds.experts))
    allowed = _allowed(grounds, problem, used)
    multiplier = fitted_multiplier(allowed, costs, grounds.weights, budget.amount)
    chosen = choices(allowed, costs, multiplier)
    cost = float(np.average(costs[chosen], weights=grounds.weights))
    if budget.amount is not None and cost > budget.amount * (1.0 + SLACK):
        raise ConfigError(
            f"objectives.{name}: pins, bans and limits allow a mean cost of {cost:g},"
            f" above the budget of {budget.amount:g}"
        )
    # corrections may push an expected score above the largest score
    taken = np.clip(grounds.expected[np.arange(len(chosen)), chosen], 0.0, 1.0)
    expected = min(float(np.average(taken, weights=grounds.weights)), 1.0)
    return ObjectiveEntry(
        active_params_b=budget.amount if budget.unit == "active_params_b" else None,
        price_per_million_tokens=budget.amount if budget.unit == "price_per_million_tokens" else None,
        multiplier=multiplier,
        experts=[grounds.experts[number] for number in used],
        mapping=_named_mapping(grounds, solution),
        fallback=grounds.experts[solution.experts[-1]],
        expected_score=expected if grounds.soft else solution.score,
        expected_active_params_b=cost if grounds.soft else solution.mean_active_params_b,
        gap=solution.gap,
    )


def decided(entry: ObjectiveEntry, grounds: Grounds, costs: Vector) -> Ints:
    """The expert that this objective gives each prompt [n] of the grounds."""
    if not grounds.soft:
        column_of = {name: column for column, name in enumerate(grounds.experts)}
        row_by_row = [*(entry.mapping[name] for name in grounds.categories), entry.fallback]
        return np.array([column_of[name] for name in row_by_row])[grounds.rows]
    used = np.array([grounds.experts.index(name) for name in entry.experts])
    return choices(_allowed(grounds, grounds.problem(costs), used), costs, entry.multiplier)


def front_points(grounds: Grounds, costs: Vector) -> list[FrontPoint]:
    """The corners of score against mean cost, cheapest first."""
    return [
        FrontPoint(
            score=point.score,
            mean_active_params_b=point.mean_active_params_b,
            experts=[grounds.experts[number] for number in point.used],
            gap=point.gap,
        )
        for point in front(grounds.problem(costs))
    ]


def _allowed(grounds: Grounds, problem: Problem, used: Ints) -> Vector:
    """Expected scores of unseen prompts, -inf where a pin, a ban or the hosted set rules an expert out.

    Each is divided by its factor: the choice is the same as with the multiplier times the factor.
    """
    allowed = problem.possible & np.isin(np.arange(len(grounds.experts)), used)
    return np.where(allowed[grounds.rows], grounds.expected / grounds.factors[:, np.newaxis], -np.inf)


def _named_mapping(grounds: Grounds, solution: Solution) -> dict[str, str]:
    names = [grounds.experts[number] for number in solution.experts]
    return {GENERAL: names[-1], **dict(zip(grounds.categories, names[:-1], strict=True))}


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """`scores`, `counts` and `standard_errors` [categories, experts]; the `overall_...` ones [experts].

    `counts` has the prompts with that category, or with it as their likeliest one. A standard error is NaN for fewer
    than two prompts.
    """

    scores: Vector
    counts: Ints
    standard_errors: Vector
    overall_scores: Vector
    overall_counts: Ints
    overall_errors: Vector


def shares_of(labels: Ints, probabilities: Vector) -> Vector:
    """[n, categories]: 1 for a prompt's own category; the `probabilities` of a prompt without one (label -1).

    With few prompts, probabilities for all of them would make a much less certain table (docs/routing-quality.md).
    """
    return np.where((labels >= 0)[:, np.newaxis], np.eye(probabilities.shape[1])[labels], probabilities)


def score_table(shares: Vector, outcomes: Vector, weights: Vector, shrinkage_prompts: float) -> ScoreTable:
    """From the prompts' `shares` of each category [n, categories], `outcomes` [n, experts] (NaN: missing) and
    `weights` [n].

    An expert's overall mean counts as `shrinkage_prompts` prompts of every category.
    Raises DatasetError where an expert has no outcome at all.
    """
    known = ~np.isnan(outcomes) & (weights > 0.0)[:, np.newaxis]
    if not known.any(axis=0).all():
        missing = int(np.argmin(known.any(axis=0))) + 1
        raise DatasetError(f"expert number {missing} of the configuration has no outcome")
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    table = _empty(shares.shape[1], outcomes.shape[1])
    for number, rows in enumerate(patterns.T):
        alike = np.flatnonzero(pattern_of == number)  # experts with outcomes for the same prompts
        _fill(table, alike, shares[rows], outcomes[np.ix_(rows, alike)], weights[rows], shrinkage_prompts)
    likeliest = np.eye(shares.shape[1], dtype=np.int64)[shares.argmax(axis=1)]
    table.counts[:] = likeliest.T @ known
    table.standard_errors[table.counts < 2] = np.nan
    return table


def _empty(categories: int, experts: int) -> ScoreTable:
    pairs = (categories, experts)
    return ScoreTable(
        scores=np.zeros(pairs),
        counts=np.zeros(pairs, dtype=np.int64),
        standard_errors=np.zeros(pairs),
        overall_scores=np.zeros(experts),
        overall_counts=np.zeros(experts, dtype=np.int64),
        overall_errors=np.full(experts, np.nan),
    )


def _fill(
    table: ScoreTable, experts: Ints, shares: Vector, outcomes: Vector, weights: Vector, shrinkage_prompts: float
) -> None:
    """Ridge regression around the overall mean; errors by the sandwich formula (White, 1980)."""
    masses = (weights / weights.mean())[:, np.newaxis]
    count = len(weights)
    overall = np.clip(masses[:, 0] @ outcomes / count, outcomes.min(axis=0), outcomes.max(axis=0))  # rounding
    # with no shrinkage at all, the score of a category without prompts would be undefined, not the overall mean
    drawn = max(shrinkage_prompts, 1e-6) * np.eye(shares.shape[1])
    influence = masses * shares @ np.linalg.inv((masses * shares).T @ shares + drawn)
    scores = overall + influence.T @ (outcomes - overall)
    table.scores[:, experts] = np.clip(scores, 0.0, 1.0)
    table.standard_errors[:, experts] = np.sqrt((influence**2).T @ (outcomes - shares @ scores) ** 2)
    table.overall_scores[experts] = overall
    table.overall_counts[experts] = count
    if count > 1:
        spread = ((masses * (outcomes - overall)) ** 2).sum(axis=0)
        table.overall_errors[experts] = np.sqrt(spread / count / (count - 1))


UNKNOWN_ERROR = 0.5  # for a score with fewer than two prompts: the largest standard deviation of values in [0, 1]


def lower_bounds(table: ScoreTable, z: float) -> ScoreTable:
    """The table with `z` standard errors taken off every score, down to 0 at most."""
    return replace(
        table,
        scores=np.clip(table.scores - z * np.nan_to_num(table.standard_errors, nan=UNKNOWN_ERROR), 0.0, 1.0),
        overall_scores=np.clip(table.overall_scores - z * np.nan_to_num(table.overall_errors, nan=UNKNOWN_ERROR), 0, 1),
    )


def factors_of(dataset: Dataset) -> Vector:
    """[n]: the factor of the multiplier for each prompt."""
    return np.array([factor(talk.turns) for talk in dataset.conversations], dtype=np.float32).astype(np.float64)


def score_entries(
    dataset: Dataset, table: ScoreTable
) -> tuple[dict[str, dict[str, ScoreEntry]], dict[str, ScoreEntry]]:
    """(score[category][expert], overall[expert]) as the manifest keeps them."""
    by_category = {
        category: _entries(dataset.experts, table.scores[row], table.counts[row], table.standard_errors[row])
        for row, category in enumerate(dataset.categories)
    }
    overall = _entries(dataset.experts, table.overall_scores, table.overall_counts, table.overall_errors)
    return by_category, overall


def _entries(
    experts: tuple[str, ...], scores: Vector, counts: npt.NDArray[np.int64], errors: Vector
) -> dict[str, ScoreEntry]:
    return {
        name: ScoreEntry(
            score=float(scores[at]),
            prompts=int(counts[at]),
            standard_error=None if np.isnan(errors[at]) else float(errors[at]),
        )
        for at, name in enumerate(experts)
    }
