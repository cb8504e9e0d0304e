"""What step two learns from prompts that step one was not fitted on: score table, limit of unsureness, gate. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import Calibration, normalised_entropy
from router_training.config import TrainingConfig
from router_training.data.dataset import Dataset
from router_training.step_one.gate import Attempts, Ramp, View, fitted_step, ramp_at, taken_scores
from router_training.step_one.uncertainty import fitted_entropy_limit
from router_training.step_two.bounds import lower_bounds
from router_training.step_two.scores import ScoreTable, score_table

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reading:
    """What step one says of n prompts it was not fitted on: calibrated `probabilities` [n, categories],
    `similarities` [n] to its prototypes, `corrections` [n, experts] as they would be applied."""

    probabilities: Vector
    calibration: Calibration
    similarities: Vector
    corrections: Vector

    def rows(self, kept: Ints) -> Reading:
        return Reading(self.probabilities[kept], self.calibration, self.similarities[kept], self.corrections[kept])


@dataclass(frozen=True, slots=True)
class Settled:
    """Step two's parameters."""

    table: ScoreTable
    max_entropy: float
    ramp: Ramp


def settled(reading: Reading, dataset: Dataset, foreign: Attempts | None, config: TrainingConfig) -> Settled:
    """From the readings of the prompts of `dataset`, and attempts at the same prompts without their groups."""
    table = table_of(reading.probabilities, dataset, config)
    limit = max_entropy_of(reading.probabilities, table, dataset, config)
    step = fitted_step(foreign, dataset)
    return Settled(table, limit, ramp_at(step, reading.similarities))


def view_of(reading: Reading, table: ScoreTable, max_entropy: float, config: TrainingConfig) -> View:
    """The scores to expect of these prompts with the categories and without."""
    probabilities = reading.probabilities
    overall = np.broadcast_to(table.overall_scores, (len(probabilities), len(table.overall_scores)))
    sure = probabilities.max(axis=1) >= config.classifier.min_confidence
    sure &= normalised_entropy(probabilities) <= max_entropy
    soft = np.where(sure[:, np.newaxis], probabilities @ table.scores + reading.corrections, overall)
    return View(reading.similarities, soft, overall)


def telling(dataset: Dataset, seen: Ints) -> Ints:
    """The prompts `seen`; all of them where those show nothing of some expert, which no score table can do without."""
    known = ~np.isnan(dataset.scores[seen]) & (dataset.weights[seen] > 0.0)[:, np.newaxis]
    return seen if known.any(axis=0).all() else np.arange(len(dataset))


def table_of(probabilities: Vector, dataset: Dataset, config: TrainingConfig) -> ScoreTable:
    """The score table, of lower bounds where the configuration asks for them."""
    table = score_table(probabilities, dataset.scores, dataset.weights, config.mapping.shrinkage_prompts)
    return lower_bounds(table, config.mapping.z) if config.mapping.scores == "lower_bound" else table


def max_entropy_of(probabilities: Vector, table: ScoreTable, dataset: Dataset, config: TrainingConfig) -> float:
    """The configured limit, or the one that these prompts ask for."""
    asked = config.classifier.max_entropy
    if asked != "auto":
        return asked
    overall = np.broadcast_to(table.overall_scores, dataset.scores.shape)
    gains = taken_scores(probabilities @ table.scores, dataset) - taken_scores(overall, dataset)
    judged = np.flatnonzero(dataset.has_all_outcomes & (dataset.weights > 0.0))
    return fitted_entropy_limit(normalised_entropy(probabilities[judged]), gains[judged], dataset.weights[judged])
