"""What the router would have done with prompts it was not fitted on: familiar ones, and those of unseen groups.

Everything that serving needs and that only unseen prompts can tell comes from here: the calibration, the score
table, the corrections, the gate's ramp, how unsure is too unsure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import Calibration
from router_training.config import TrainingConfig
from router_training.data.dataset import Dataset
from router_training.drafting.abroad import Abroad, abroad
from router_training.drafting.settling import Reading, Settled, settled, table_of, telling, view_of
from router_training.progress import Track
from router_training.step_one.basis import Basis
from router_training.step_one.calibration import fitted_calibration
from router_training.step_one.classifier import Fold, cross_fit, prompt_folds
from router_training.step_one.corrections import practised
from router_training.step_one.gate import Ramp
from router_training.step_two.scores import ScoreTable

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The `reading` of n prompts not fitted on, what step two made of it, and the scores `expected` [n, experts].

    `correction_share` is how much of the corrections earned its place (0: none). `foreign` is the same where each
    prompt's whole group was unseen, ramp included (None without groups). `folds` are those by prompt.
    """

    reading: Reading
    step_two: Settled
    expected: Vector
    correction_share: float
    foreign: Abroad | None
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
        """[n]: of the gate, 0 to 1."""
        return self.ramp.trust(self.reading.similarities)

    def rows(self, kept: Ints) -> Rehearsal:
        """The same for some of the prompts; nothing is fitted again, and folds and groups are left behind."""
        return replace(self, reading=self.reading.rows(kept), expected=self.expected[kept], foreign=None, folds=())


def rehearse(basis: Basis, dataset: Dataset, config: TrainingConfig, track: Track) -> Rehearsal:
    """Fits step one several times, each time without some prompts, and looks at what it says of those."""
    folds = prompt_folds(dataset, config.classifier.folds, config.seed)
    unseen = cross_fit(basis, dataset, config, track(folds, "fitting without some prompts"))
    calibration = fitted_calibration(unseen.logits, dataset.labels, config.classifier.calibration)
    probabilities = calibration.probabilities(unseen.logits)
    expected = partial(_expected_by, probabilities, dataset, config)
    practice = practised(basis.gram, dataset, expected, folds, track)
    reading = Reading(probabilities, calibration, unseen.similarities, practice.corrections)
    foreign = abroad(basis, dataset, reading, practice.share, config, track)
    everything = np.arange(len(dataset))
    step_two = _settled(reading, foreign, dataset, everything, config)
    return Rehearsal(
        reading=reading,
        step_two=step_two,
        expected=_expected(reading, step_two, config),
        correction_share=practice.share,
        foreign=foreign,
        folds=tuple(folds),
    )


def _expected_by(probabilities: Vector, dataset: Dataset, config: TrainingConfig, seen: Ints) -> Vector:
    """[n, experts]: the scores to expect of every prompt by the score table of the prompts `seen`, if they show every
    expert."""
    seen = telling(dataset, seen)
    return np.asarray(probabilities @ table_of(probabilities[seen], dataset.rows(seen), config).scores)


def refitted(rehearsal: Rehearsal, dataset: Dataset, seen: Ints, config: TrainingConfig) -> Rehearsal:
    """The same had step two known the prompts `seen` only: what it expects of the others it expects of unseen ones."""
    step_two = _settled(rehearsal.reading, rehearsal.foreign, dataset, seen, config)
    return replace(rehearsal, step_two=step_two, expected=_expected(rehearsal.reading, step_two, config))


def _settled(reading: Reading, foreign: Abroad | None, dataset: Dataset, seen: Ints, config: TrainingConfig) -> Settled:
    attempts = foreign.attempts.rows(seen) if foreign is not None else None
    return settled(reading.rows(seen), dataset.rows(seen), attempts, config)


def _expected(reading: Reading, step_two: Settled, config: TrainingConfig) -> Vector:
    return view_of(reading, step_two.table, step_two.max_entropy, config).expected(step_two.ramp)
