"""Step two, fitted: each objective's mapping and multiplier, and the manifest that says so. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.errors import ConfigError
from coe_server.routing.decision import GENERAL
from coe_server.routing.manifest import FrontPoint, ObjectiveEntry, ScoreEntry
from router_training.config import TrainingConfig
from router_training.dataset import Dataset
from router_training.mapping import SLACK, Problem, Solution, choices, fitted_multiplier, front, solve
from router_training.rehearsal import Rehearsal
from router_training.scores import ScoreTable

Vector = npt.NDArray[np.float64]

LEAST_SHARE = 1e-4  # of traffic: a row of the program without any would be mapped at random


def solve_objectives(dataset: Dataset, rehearsal: Rehearsal, config: TrainingConfig) -> dict[str, ObjectiveEntry]:
    """Every objective with its mapping (program) and its multiplier (soft mixing on unseen prompts).

    Raises ConfigError where no mapping fits a budget with the pins and bans.
    """
    problem = as_problem(dataset, rehearsal, config)
    fitting = Fitting(problem, dataset, rehearsal, soft=config.mapping.mode == "soft")
    return {name: _solve(name, settings.active_params_b, fitting) for name, settings in config.objectives.items()}


def as_problem(dataset: Dataset, rehearsal: Rehearsal, config: TrainingConfig) -> Problem:
    """Predicted categories as rows, and a last row for prompts outside the gate, with the overall means."""
    categories = len(dataset.categories)
    predicted = np.where(rehearsal.inside, rehearsal.probabilities.argmax(axis=1), categories)
    traffic = np.bincount(predicted, dataset.weights, categories + 1) / dataset.weights.sum()
    shares = np.maximum(traffic, LEAST_SHARE)
    row_of = _row_numbers(dataset)
    column_of = {name: position for position, name in enumerate(dataset.experts)}
    settings = config.mapping
    return Problem(
        scores=np.vstack((rehearsal.table.scores, rehearsal.table.overall_scores)),
        shares=shares / shares.sum(),
        active_params_b=_sizes(config),
        total_params_b=np.array([expert.total_params_b or expert.active_params_b for expert in config.experts]),
        hosted_params_b=settings.hosted_params_b,
        max_experts=settings.max_experts,
        pins={row_of[name]: column_of[expert] for name, expert in settings.pins.items()},
        bans=frozenset((row_of[name], column_of[one]) for name, banned in settings.bans.items() for one in banned),
    )


def front_points(problem: Problem, experts: tuple[str, ...]) -> list[FrontPoint]:
    """The corners of score against mean active parameters, cheapest first."""
    return [
        FrontPoint(
            score=point.score,
            mean_active_params_b=point.mean_active_params_b,
            experts=[experts[number] for number in point.used],
            gap=point.gap,
        )
        for point in front(problem)
    ]


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


@dataclass(frozen=True, slots=True)
class Fitting:
    """What every objective is solved on."""

    problem: Problem
    dataset: Dataset
    rehearsal: Rehearsal
    soft: bool


def _solve(name: str, budget: float | None, fitting: Fitting) -> ObjectiveEntry:
    problem, dataset, rehearsal = fitting.problem, fitting.dataset, fitting.rehearsal
    solution = solve(problem, active_params_b=budget)
    if solution is None:
        limit = "the limits under mapping" if budget is None else f"{budget:g} B and the limits under mapping"
        raise ConfigError(
            f"objectives.{name}: no mapping fits {limit}; the smallest expert has {problem.active_params_b.min():g} B"
        )
    used = solution.used if problem.joins_categories else np.arange(len(dataset.experts))
    allowed = _allowed(rehearsal, problem, used)
    sizes = problem.active_params_b
    multiplier = fitted_multiplier(allowed, sizes, dataset.weights, budget)
    chosen = choices(allowed, sizes, multiplier)
    cost = float(np.average(sizes[chosen], weights=dataset.weights))
    if budget is not None and cost > budget * (1.0 + SLACK):
        raise ConfigError(f"objectives.{name}: pins and bans leave {cost:g} B of the {budget:g} B asked for")
    expected = float(np.average(rehearsal.expected[np.arange(len(chosen)), chosen], weights=dataset.weights))
    return ObjectiveEntry(
        active_params_b=budget,
        multiplier=multiplier,
        experts=[dataset.experts[number] for number in used],
        mapping=_named_mapping(dataset, solution),
        fallback=dataset.experts[solution.experts[-1]],
        expected_score=expected if fitting.soft else solution.score,
        expected_active_params_b=cost if fitting.soft else solution.mean_active_params_b,
        gap=solution.gap,
    )


def _allowed(rehearsal: Rehearsal, problem: Problem, used: npt.NDArray[np.int64]) -> Vector:
    """Expected scores of unseen prompts, -inf where a pin, a ban or the hosted set rules an expert out."""
    rows = np.where(rehearsal.inside, rehearsal.probabilities.argmax(axis=1), len(problem.shares) - 1)
    allowed = problem.possible & np.isin(np.arange(len(problem.active_params_b)), used)
    return np.where(allowed[rows], rehearsal.expected, -np.inf)


def _named_mapping(dataset: Dataset, solution: Solution) -> dict[str, str]:
    names = [dataset.experts[number] for number in solution.experts]
    return {GENERAL: names[-1], **dict(zip(dataset.categories, names[:-1], strict=True))}


def _row_numbers(dataset: Dataset) -> Mapping[str, int]:
    """Row of each category; `general` is the last row unless it is a label of the data as well."""
    rows = {GENERAL: len(dataset.categories)}
    return rows | {name: position for position, name in enumerate(dataset.categories)}


def require_categories(dataset: Dataset, config: TrainingConfig) -> None:
    """Raises ConfigError where a pin or a ban names a category that the data does not have."""
    for name in (*config.mapping.pins, *config.mapping.bans):
        if name != GENERAL and name not in dataset.categories:
            known = ", ".join(dataset.categories)
            raise ConfigError(f"mapping: pins or bans name category {name!r}, which the data does not have ({known})")


def _sizes(config: TrainingConfig) -> Vector:
    return np.array([expert.active_params_b for expert in config.experts])


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
