"""Out-of-fold and leave-one-group-out predictions, and step two solved on them.

They give the parameters that must not be fitted on a model's own training prompts: the calibration, the score table,
the corrections, the gate's ramp and the entropy threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from router_training.classifier.calibration import (
    fitted_calibration,
    fitted_corrections,
    out_of_fold_corrections,
    residuals,
)
from router_training.classifier.classifier import Unseen, cross_fit, group_folds, prompt_folds
from router_training.classifier.features import Basis
from router_training.config import COST_UNITS, ObjectiveSettings, TrainingConfig
from router_training.cross_fit.thresholds import (
    LADDER,
    Attempts,
    Ramp,
    Reading,
    StepTwo,
    View,
    fitted_step,
    fitted_step_two,
    max_entropy_of,
    ramp_at,
    table_of,
    telling,
    view_of,
)
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


GROUP_FOLDS = 15  # at most; up to this number, each group is a fold of its own


@dataclass(frozen=True, slots=True)
class LeaveGroupOut:
    """Leave-one-group-out predictions of n prompts.

    `attempts` are at every step of the gate's ladder; `expected` [n, experts] are the scores at the step fitted on the
    other groups.
    """

    attempts: Attempts
    expected: Vector


def leave_groups_out(
    basis: Basis,
    dataset: Dataset,
    in_group: Reading,
    correction_share: float,
    config: TrainingConfig,
    track: Track,
) -> LeaveGroupOut | None:
    """Leave-one-group-out predictions of the prompts of `dataset`; None for fewer than three groups."""
    folds = group_folds(dataset, GROUP_FOLDS)
    if folds is None:
        return None
    unseen_groups = _predicted_without_groups(basis, dataset, folds, config, track)
    reading = Reading(
        in_group.calibration.probabilities(unseen_groups.unseen.logits),
        in_group.calibration,
        unseen_groups.unseen.similarities,
        _corrections(basis, folds, dataset, in_group, correction_share, config, track),
    )
    view = _view(reading, folds, dataset, in_group, config)
    attempts = _attempts(view, folds, unseen_groups.in_group)
    expected = np.zeros_like(dataset.scores)
    for fold in folds:
        step = fitted_step(attempts.rows(fold.seen), dataset.rows(fold.seen))
        expected[fold.left_out] = attempts.expected[step][fold.left_out]
    return LeaveGroupOut(attempts, expected)


@dataclass(frozen=True, slots=True)
class GroupPredictions:
    """Step one's output for every held-out group, and for each fold the similarities of in-group prompts.

    Both are measured with the fold's prototypes and vocabulary: those of another fit have another scale.
    """

    unseen: Unseen
    in_group: tuple[Vector, ...]


def _predicted_without_groups(
    basis: Basis, dataset: Dataset, folds: Sequence[Fold], config: TrainingConfig, track: Track
) -> GroupPredictions:
    """One fit for each fold, without its groups and without a sample of the other prompts."""
    draw = np.random.default_rng(config.seed)
    logits = np.zeros((len(dataset), len(dataset.categories)))
    similarities = np.zeros(len(dataset))
    in_group = []
    for fold in track(folds, "fitting without some groups"):
        stay = np.sort(draw.permutation(fold.seen)[: max(1, len(fold.seen) // config.classifier.folds)])
        away = Fold(np.setdiff1d(fold.seen, stay), np.concatenate((fold.left_out, stay)))
        unseen = cross_fit(basis, dataset, config, [away])
        logits[fold.left_out] = unseen.logits[fold.left_out]
        similarities[fold.left_out] = unseen.similarities[fold.left_out]
        in_group.append(unseen.similarities[stay])
    return GroupPredictions(Unseen(logits, similarities), tuple(in_group))


def _attempts(view: View, folds: Sequence[Fold], in_group: Sequence[Vector]) -> Attempts:
    expected = tuple(np.zeros_like(view.soft) for _ in LADDER)
    for fold, similarities in zip(folds, in_group, strict=True):
        left_out = view.rows(fold.left_out)
        for step, found in enumerate(expected):
            found[fold.left_out] = left_out.expected(ramp_at(step, similarities))
    return Attempts(expected, view.overall)


def _view(reading: Reading, folds: Sequence[Fold], dataset: Dataset, in_group: Reading, config: TrainingConfig) -> View:
    """Expected scores of each fold by the score table of the other groups."""
    soft = np.zeros_like(dataset.scores)
    overall = np.zeros_like(dataset.scores)
    for fold in folds:
        seen = telling(dataset, fold.seen)
        others, known = dataset.rows(seen), in_group.probabilities[seen]
        table = table_of(known, others, config)
        limit = max_entropy_of(known, table, others, config)
        view = view_of(reading.rows(fold.left_out), table, limit, config)
        soft[fold.left_out], overall[fold.left_out] = view.soft, view.overall
    return View(reading.similarities, soft, overall)


def _corrections(
    basis: Basis,
    folds: Sequence[Fold],
    dataset: Dataset,
    in_group: Reading,
    share: float,
    config: TrainingConfig,
    track: Track,
) -> Vector:
    """[n, experts]: corrections and score table fitted without the prompt's group."""
    found = np.zeros_like(dataset.scores)
    for fold in track(folds, "correcting without some groups") if share > 0.0 else ():
        seen = telling(dataset, fold.seen)
        table = table_of(in_group.probabilities[seen], dataset.rows(seen), config)
        others, known = dataset.rows(fold.seen), in_group.probabilities[fold.seen]
        left = residuals(others.scores, known @ table.scores)
        fitted = fitted_corrections(basis.gram.rows(fold.seen), left, others.weights)
        vectors = basis.unseen(fold.left_out, fold.seen, config.features.min_prompts)
        found[fold.left_out] = share * (vectors @ fitted.coefficients)
    return found


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
