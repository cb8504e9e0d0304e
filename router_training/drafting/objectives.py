"""Step two of a training run: what it is solved on, each objective's solution, and the score table as kept. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coe_server.routing.budget import factor
from coe_server.routing.manifest import FrontPoint, ObjectiveEntry, ScoreEntry
from router_training.config import COST_UNITS, ObjectiveSettings, TrainingConfig
from router_training.data.dataset import Dataset
from router_training.drafting.rehearsal import Rehearsal
from router_training.step_two import solving as step_two
from router_training.step_two.scores import ScoreTable
from router_training.step_two.solving import Budget, Grounds, Limits

Vector = npt.NDArray[np.float64]


def solve_objectives(dataset: Dataset, rehearsal: Rehearsal, config: TrainingConfig) -> dict[str, ObjectiveEntry]:
    """Every objective with its mapping and its multiplier.

    Raises ConfigError where no mapping fits a budget with the pins and bans.
    """
    grounds = grounds_of(dataset, rehearsal, config)
    budgets = {name: _budget(settings, config) for name, settings in config.objectives.items()}
    return {
        name: step_two.solve_objective(name, budget, np.array(config.costs(budget.unit)), grounds)
        for name, budget in budgets.items()
    }


def front_points(dataset: Dataset, rehearsal: Rehearsal, config: TrainingConfig) -> list[FrontPoint]:
    """The corners of score against mean cost, cheapest first."""
    return step_two.front_points(grounds_of(dataset, rehearsal, config), np.array(config.costs(config.cost_unit)))


def grounds_of(dataset: Dataset, rehearsal: Rehearsal, config: TrainingConfig) -> Grounds:
    """Predicted categories as rows, and a last row for prompts outside the gate, with the overall means."""
    settings = config.mapping
    return Grounds(
        categories=dataset.categories,
        experts=dataset.experts,
        scores=np.vstack((rehearsal.table.scores, rehearsal.table.overall_scores)),
        rows=np.where(rehearsal.trust > 0.0, rehearsal.probabilities.argmax(axis=1), len(dataset.categories)),
        expected=rehearsal.expected,
        weights=dataset.weights,
        factors=factors_of(dataset),
        total_params_b=np.array([expert.hosted_params_b for expert in config.experts]),
        limits=Limits(settings.hosted_params_b, settings.max_experts, settings.pins, settings.bans),
        soft=settings.mode == "soft",
    )


def factors_of(dataset: Dataset) -> Vector:
    """[n]: what the multiplier is multiplied by for each prompt."""
    return np.array([factor(talk.turns) for talk in dataset.conversations], dtype=np.float32).astype(np.float64)


def _budget(settings: ObjectiveSettings, config: TrainingConfig) -> Budget:
    for unit in COST_UNITS:
        amount = getattr(settings, unit)
        if amount is not None:
            return Budget(amount, unit)
    return Budget(None, config.cost_unit)


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
