"""Out-of-fold and leave-one-group-out predictions, and step two solved on them.

They give the parameters that must not be fitted on a model's own training prompts: the calibration, the score table,
the corrections, the gate's ramp and the entropy threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import Calibration
from coe_server.routing.manifest import FrontPoint, ObjectiveEntry
from router_training import Track
from router_training.assignment.objectives import (
    Budget,
    Grounds,
    Limits,
    ScoreTable,
    decided,
    factors_of,
    front_points,
    solve_objective,
)
from router_training.classifier.calibration import fitted_calibration, out_of_fold_corrections
from router_training.classifier.classifier import cross_fit, prompt_folds
from router_training.classifier.features import Basis
from router_training.config import COST_UNITS, ObjectiveSettings, TrainingConfig
from router_training.cross_fit.groups import LeaveGroupOut, leave_groups_out
from router_training.cross_fit.thresholds import Ramp, Reading, StepTwo, fitted_step_two, table_of, telling, view_of
from router_training.data.dataset import Dataset
from router_training.data.split import Fold

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """The out-of-fold `reading` of n prompts, step two solved on it, and the scores `expected` [n, experts].

    `correction_share` is the share of the corrections that is applied (0: none). `group_out` has the
    leave-one-group-out predictions, ramp included (None without groups). `folds` are the folds by prompt.
    """

    reading: Reading
    step_two: StepTwo
    expected: Vector
    correction_share: float
    group_out: LeaveGroupOut | None
    folds: tuple[Fold, ...]

    @property
    def probabilities(self) -> Vector:
        return self.reading.probabilities

    @property
    def corrections(self) -> Vector:
        return self.reading.corrections

    @property
    def calibration(self) -> Calibration:
        return self.reading.calibration

    @property
    def table(self) -> ScoreTable:
        return self.step_two.table

    @property
    def max_entropy(self) -> float:
        return self.step_two.max_entropy

    @property
    def ramp(self) -> Ramp:
        return self.step_two.ramp

    @property
    def trust(self) -> Vector:
        """[n]: the gate's trust, 0 to 1."""
        return self.ramp.trust(self.reading.similarities)

    def rows(self, kept: Ints) -> OutOfFold:
        """The predictions of some of the prompts, without refitting, folds and groups."""
        return replace(self, reading=self.reading.rows(kept), expected=self.expected[kept], group_out=None, folds=())


def predict_out_of_fold(basis: Basis, dataset: Dataset, config: TrainingConfig, track: Track) -> OutOfFold:
    """Fit step one once per fold, without the fold's prompts, and predict those."""
    folds = prompt_folds(dataset, config.classifier.folds, config.seed)
    unseen = cross_fit(basis, dataset, config, track(folds, "fitting without some prompts"))
    calibration = fitted_calibration(unseen.logits, dataset.labels, config.classifier.calibration)
    probabilities = calibration.probabilities(unseen.logits)
    expected = partial(_expected_by, probabilities, dataset, config)
    corrected = out_of_fold_corrections(basis.gram, dataset, expected, folds, track)
    reading = Reading(probabilities, calibration, unseen.similarities, corrected.corrections)
    group_out = leave_groups_out(basis, dataset, reading, corrected.share, config, track)
    everything = np.arange(len(dataset))
    step_two = _settled(reading, group_out, dataset, everything, config)
    return OutOfFold(
        reading=reading,
        step_two=step_two,
        expected=_expected(reading, step_two, config),
        correction_share=corrected.share,
        group_out=group_out,
        folds=tuple(folds),
    )


def _expected_by(probabilities: Vector, dataset: Dataset, config: TrainingConfig, seen: Ints) -> Vector:
    """[n, experts]: expected scores of every prompt by the score table of the prompts `seen`.

    The table is that of all prompts if some expert has no outcome in `seen`.
    """
    seen = telling(dataset, seen)
    return np.asarray(probabilities @ table_of(probabilities[seen], dataset.rows(seen), config).scores)


def refitted(predictions: OutOfFold, dataset: Dataset, seen: Ints, config: TrainingConfig) -> OutOfFold:
    """The same with step two fitted on the prompts `seen` only: expected scores of the others are out-of-fold."""
    step_two = _settled(predictions.reading, predictions.group_out, dataset, seen, config)
    return replace(predictions, step_two=step_two, expected=_expected(predictions.reading, step_two, config))


def _settled(
    reading: Reading, group_out: LeaveGroupOut | None, dataset: Dataset, seen: Ints, config: TrainingConfig
) -> StepTwo:
    attempts = group_out.attempts.rows(seen) if group_out is not None else None
    return fitted_step_two(reading.rows(seen), dataset.rows(seen), attempts, config)


def _expected(reading: Reading, step_two: StepTwo, config: TrainingConfig) -> Vector:
    return view_of(reading, step_two.table, step_two.max_entropy, config).expected(step_two.ramp)


def solve_objectives(dataset: Dataset, predictions: OutOfFold, config: TrainingConfig) -> dict[str, ObjectiveEntry]:
    """Every objective with its mapping and its multiplier.

    Raises ConfigError where no mapping fits a budget with the pins and bans.
    """
    grounds = grounds_of(dataset, predictions, config)
    budgets = {name: _budget(settings, config) for name, settings in config.objectives.items()}
    return {
        name: solve_objective(name, budget, np.array(config.costs(budget.unit)), grounds)
        for name, budget in budgets.items()
    }


def front_of(dataset: Dataset, predictions: OutOfFold, config: TrainingConfig) -> list[FrontPoint]:
    """The corners of score against mean cost, cheapest first."""
    return front_points(grounds_of(dataset, predictions, config), np.array(config.costs(config.cost_unit)))


def grounds_of(dataset: Dataset, predictions: OutOfFold, config: TrainingConfig) -> Grounds:
    """The data of step two: predicted categories as rows; the last row has the overall means, for prompts outside the
    gate."""
    settings = config.mapping
    return Grounds(
        categories=dataset.categories,
        experts=dataset.experts,
        scores=np.vstack((predictions.table.scores, predictions.table.overall_scores)),
        rows=np.where(predictions.trust > 0.0, predictions.probabilities.argmax(axis=1), len(dataset.categories)),
        expected=predictions.expected,
        weights=dataset.weights,
        factors=factors_of(dataset),
        total_params_b=np.array([expert.hosted_params_b for expert in config.experts]),
        limits=Limits(settings.hosted_params_b, settings.max_experts, settings.pins, settings.bans),
        soft=settings.mode == "soft",
    )


def _budget(settings: ObjectiveSettings, config: TrainingConfig) -> Budget:
    for unit in COST_UNITS:
        amount = getattr(settings, unit)
        if amount is not None:
            return Budget(amount, unit)
    return Budget(None, config.cost_unit)


def cross_validated(predictions: OutOfFold, dataset: Dataset, config: TrainingConfig) -> dict[str, Ints]:
    """objective -> expert [n] of each prompt, chosen by step two fitted without the prompt's fold.

    The fold is not left out if some expert would have no outcome without it.
    """
    chosen = {name: np.zeros(len(dataset), dtype=np.int64) for name in config.objectives}
    for fold in predictions.folds:
        seen = telling(dataset, fold.seen)
        again = refitted(predictions, dataset, seen, config)
        entries = solve_objectives(dataset.rows(seen), again.rows(seen), config)
        grounds = grounds_of(dataset.rows(fold.left_out), again.rows(fold.left_out), config)
        for name, entry in entries.items():
            costs = np.array(config.costs(entry.budget_unit or config.cost_unit))
            chosen[name][fold.left_out] = decided(entry, grounds, costs)
    return chosen
