"""Score table, entropy threshold and gate ramp, fitted on out-of-fold predictions. Pure.

Held-out groups move the ramp only if the effect is significant over groups: there are few groups, and a threshold that
follows their mean gain follows noise (docs/routing-quality.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import Calibration, normalised_entropy
from coe_server.routing.gate import trust_in
from router_training.assignment.objectives import ScoreTable, lower_bounds, score_table, shares_of
from router_training.config import TrainingConfig
from router_training.data.dataset import Dataset

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reading:
    """Out-of-fold output of step one for n prompts.

    Calibrated `probabilities` [n, categories], `similarities` [n] to its prototypes, `corrections` [n, experts] as they
    would be applied.
    """

    probabilities: Vector
    calibration: Calibration
    similarities: Vector
    corrections: Vector

    def rows(self, kept: Ints) -> Reading:
        return Reading(self.probabilities[kept], self.calibration, self.similarities[kept], self.corrections[kept])


@dataclass(frozen=True, slots=True)
class StepTwo:
    """Step two's parameters."""

    table: ScoreTable
    max_entropy: float
    ramp: Ramp


def fitted_step_two(reading: Reading, dataset: Dataset, group_out: Attempts | None, config: TrainingConfig) -> StepTwo:
    """Fitted on the readings of the prompts of `dataset` and their leave-one-group-out predictions."""
    table = table_of(reading.probabilities, dataset, config)
    limit = max_entropy_of(reading.probabilities, table, dataset, config)
    step = fitted_step(group_out, dataset)
    return StepTwo(table, limit, ramp_at(step, reading.similarities))


def view_of(reading: Reading, table: ScoreTable, max_entropy: float, config: TrainingConfig) -> View:
    """Expected scores of these prompts with the categories and without."""
    probabilities = reading.probabilities
    overall = np.broadcast_to(table.overall_scores, (len(probabilities), len(table.overall_scores)))
    sure = probabilities.max(axis=1) >= config.classifier.min_confidence
    sure &= normalised_entropy(probabilities) <= max_entropy
    soft = np.where(sure[:, np.newaxis], probabilities @ table.scores + reading.corrections, overall)
    return View(reading.similarities, soft, overall)


def telling(dataset: Dataset, seen: Ints) -> Ints:
    """The prompts `seen`, or all prompts if some expert has no outcome there: the score table needs every one."""
    known = ~np.isnan(dataset.scores[seen]) & (dataset.weights[seen] > 0.0)[:, np.newaxis]
    return seen if known.any(axis=0).all() else np.arange(len(dataset))


def table_of(probabilities: Vector, dataset: Dataset, config: TrainingConfig) -> ScoreTable:
    """The score table; of lower bounds if so configured."""
    shares = shares_of(dataset.labels, probabilities)
    table = score_table(shares, dataset.scores, dataset.weights, config.mapping.shrinkage_prompts)
    return lower_bounds(table, config.mapping.z) if config.mapping.scores == "lower_bound" else table


def max_entropy_of(probabilities: Vector, table: ScoreTable, dataset: Dataset, config: TrainingConfig) -> float:
    """The configured limit; with `auto` the one fitted on these prompts."""
    asked = config.classifier.max_entropy
    if asked != "auto":
        return asked
    overall = np.broadcast_to(table.overall_scores, dataset.scores.shape)
    gains = taken_scores(probabilities @ table.scores, dataset) - taken_scores(overall, dataset)
    judged = np.flatnonzero(dataset.measures & (dataset.weights > 0.0))
    return fitted_entropy_limit(normalised_entropy(probabilities[judged]), gains[judged], dataset.weights[judged])


# quantiles of in-group similarities between which trust grows from 0 to 1, in order of caution
LADDER = ((0.0, 0.05), (0.05, 0.25), (0.25, 0.5), (0.5, 0.75))
USUAL = 1  # the default step
CERTAIN = 2.0  # standard errors, over groups, that make a gain or a loss certain


@dataclass(frozen=True, slots=True)
class Ramp:
    """Similarities: no trust below `threshold`, full trust from `full_trust`."""

    threshold: float
    full_trust: float

    def trust(self, similarities: Vector) -> Vector:
        """[n], 0 to 1."""
        return trust_in(similarities, self.threshold, self.full_trust)


OPEN = Ramp(-1.0, -1.0)


@dataclass(frozen=True, slots=True)
class View:
    """n out-of-fold prompts: `similarities` [n], and expected scores [n, experts] with categories (`soft`) and without
    (`overall`)."""

    similarities: Vector
    soft: Vector
    overall: Vector

    def rows(self, kept: Ints) -> View:
        return View(self.similarities[kept], self.soft[kept], self.overall[kept])

    def expected(self, ramp: Ramp) -> Vector:
        """Expected scores behind a gate with this ramp."""
        return self.overall + ramp.trust(self.similarities)[:, np.newaxis] * (self.soft - self.overall)


@dataclass(frozen=True, slots=True)
class Attempts:
    """Predictions for n prompts of held-out groups.

    `expected` has scores [n, experts] for every step of the ladder, with quantiles from the other groups; `overall`
    [n, experts] has the scores without categories.
    """

    expected: tuple[Vector, ...]
    overall: Vector

    def rows(self, kept: Ints) -> Attempts:
        return Attempts(tuple(step[kept] for step in self.expected), self.overall[kept])


def ramp_at(step: int, in_group: Vector) -> Ramp:
    """The ramp of this step for similarities [n] of in-group prompts; an open gate if n is 0."""
    if len(in_group) == 0:
        return OPEN
    threshold, full_trust = np.quantile(in_group, LADDER[step])
    return Ramp(float(threshold), float(full_trust))


def fitted_step(group_out: Attempts | None, dataset: Dataset) -> int:
    """The default step; the one before if held-out groups gain by it significantly; a later one if they lose.

    A loss is measured at the default step against the overall means. `group_out` belongs to the prompts of `dataset`.
    """
    if group_out is None:
        return USUAL
    taken = [taken_scores(step, dataset) for step in group_out.expected]
    if _certain(taken[USUAL - 1] - taken[USUAL], dataset) > 0:
        return USUAL - 1
    overall = taken_scores(group_out.overall, dataset)
    steps = range(USUAL, len(LADDER) - 1)
    return next((step for step in steps if _certain(taken[step] - overall, dataset) >= 0), len(LADDER) - 1)


def taken_scores(expected: Vector, dataset: Dataset) -> Vector:
    """[n]: the outcome of the expert with the best expected score; NaN where it is missing."""
    return np.asarray(dataset.scores[np.arange(len(expected)), expected.argmax(axis=1)])


def _certain(differences: Vector, dataset: Dataset) -> int:
    """Sign of the mean of `differences` [n] if it is significant over groups, else 0. Groups are the sampling unit."""
    judged = np.flatnonzero(dataset.measures & (dataset.weights > 0.0))
    names, group_of = np.unique(dataset.groups[judged], return_inverse=True)
    count = len(names)
    if count < 2:
        return 0
    sums = np.bincount(group_of, (dataset.weights * differences)[judged], count)
    error = np.sqrt(count / (count - 1) * ((sums - sums.mean()) ** 2).sum())
    return int(np.sign(sums.sum())) if abs(sums.sum()) > CERTAIN * error else 0


NEVER = 1.0
QUANTILES = np.linspace(0.3, 1.0, 36)  # entropy sends at most seven prompts in ten to `general`


def fitted_entropy_limit(entropies: Vector, gains: Vector, weights: Vector) -> float:
    """The normalised entropy above which the experts' overall means decide; 1 (never) unless a lower limit is better.

    `gains` [n] is the score gained on each prompt by trusting the categories instead of the overall means. A lower
    limit is better if trusting the categories on the prompts above it loses score by more than two standard errors.
    """
    if len(gains) == 0:
        return NEVER
    best, limit = 0.0, NEVER
    for candidate in np.quantile(entropies, QUANTILES):
        unsure = entropies > candidate
        if unsure.sum() < 2:
            continue
        lost = -weights * gains * unsure / weights.mean()
        saved = float(lost.mean())
        certain = saved > 2.0 * float(lost.std(ddof=1)) / np.sqrt(len(lost))
        if certain and saved > best:
            best, limit = saved, float(candidate)
    return limit
