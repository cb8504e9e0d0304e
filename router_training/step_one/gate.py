"""Which similarities the gate trusts, and how much: a ramp between two of those that familiar prompts have. Pure.

Groups left out of training move the ramp only where they agree that it should: there are few of them, and a threshold
that follows their mean gain follows the noise (docs/routing-quality.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.gate import trust_in
from router_training.data.dataset import Dataset

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# quantiles of the similarities of familiar prompts between which trust grows from 0 to 1, cautious ones later
LADDER = ((0.0, 0.05), (0.05, 0.25), (0.25, 0.5), (0.5, 0.75))
USUAL = 1  # the step taken unless groups say otherwise
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
    """n prompts unseen in fitting: `similarities` [n], and the scores [n, experts] to expect if the categories
    are trusted (`soft`) and if not (`overall`)."""

    similarities: Vector
    soft: Vector
    overall: Vector

    def rows(self, kept: Ints) -> View:
        return View(self.similarities[kept], self.soft[kept], self.overall[kept])

    def expected(self, ramp: Ramp) -> Vector:
        """The scores to expect behind a gate with this ramp."""
        return self.overall + ramp.trust(self.similarities)[:, np.newaxis] * (self.soft - self.overall)


@dataclass(frozen=True, slots=True)
class Attempts:
    """n prompts of unseen groups: the scores `expected` [n, experts] of them at every step of the ladder, between
    similarities that their group had no say in, and the `overall` ones [n, experts]."""

    expected: tuple[Vector, ...]
    overall: Vector

    def rows(self, kept: Ints) -> Attempts:
        return Attempts(tuple(step[kept] for step in self.expected), self.overall[kept])


def ramp_at(step: int, familiar: Vector) -> Ramp:
    """The ramp of this step for similarities [n] of familiar prompts; without any the gate stays open."""
    if len(familiar) == 0:
        return OPEN
    threshold, full_trust = np.quantile(familiar, LADDER[step])
    return Ramp(float(threshold), float(full_trust))


def fitted_step(foreign: Attempts | None, dataset: Dataset) -> int:
    """The usual step; an earlier one if prompts of unseen groups certainly gain by it, a later one if at the usual
    one they certainly lose against the overall means. `foreign` are attempts at the prompts of `dataset`."""
    if foreign is None:
        return USUAL
    taken = [taken_scores(step, dataset) for step in foreign.expected]
    if _certain(taken[USUAL - 1] - taken[USUAL], dataset) > 0:
        return USUAL - 1
    overall = taken_scores(foreign.overall, dataset)
    steps = range(USUAL, len(LADDER) - 1)
    return next((step for step in steps if _certain(taken[step] - overall, dataset) >= 0), len(LADDER) - 1)


def taken_scores(expected: Vector, dataset: Dataset) -> Vector:
    """[n]: the outcome of the expert with the best expected score; NaN where it is missing."""
    return np.asarray(dataset.scores[np.arange(len(expected)), expected.argmax(axis=1)])


def _certain(differences: Vector, dataset: Dataset) -> int:
    """Sign of the mean of `differences` [n] if groups agree on it, else 0. The groups are what was drawn."""
    judged = np.flatnonzero(dataset.has_all_outcomes & (dataset.weights > 0.0))
    names, group_of = np.unique(dataset.groups[judged], return_inverse=True)
    count = len(names)
    if count < 2:
        return 0
    sums = np.bincount(group_of, (dataset.weights * differences)[judged], count)
    error = np.sqrt(count / (count - 1) * ((sums - sums.mean()) ** 2).sum())
    return int(np.sign(sums.sum())) if abs(sums.sum()) > CERTAIN * error else 0
