"""Where the gate's threshold lies: what trusting the categories gains, against how similar a prompt is. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router_training.dataset import Dataset

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

QUANTILES = np.linspace(0.0, 0.9, 46)
PREMIUM = 0.05  # of the gain on familiar prompts, paid against foreign ones unlike any group seen
ABOUT_AS_GOOD = 0.05  # of the same gain: the curve is flat and noisy, and its lowest good threshold costs least


@dataclass(frozen=True, slots=True)
class View:
    """n prompts unseen in fitting: `similarities` [n], and the scores [n, experts] to expect if the categories
    are trusted (`soft`) and if not (`overall`)."""

    similarities: Vector
    soft: Vector
    overall: Vector

    def rows(self, kept: Ints) -> View:
        return View(self.similarities[kept], self.soft[kept], self.overall[kept])

    def expected(self, threshold: float) -> Vector:
        """The scores to expect behind a gate with this threshold."""
        return np.where((self.similarities >= threshold)[:, np.newaxis], self.soft, self.overall)

    def trial(self, dataset: Dataset) -> Trial:
        """What trusting the categories gains on each prompt that has all outcomes."""
        judged = np.flatnonzero(dataset.has_all_outcomes & (dataset.weights > 0.0))
        outcomes = dataset.scores[judged]
        rows = np.arange(len(judged))
        trusted = outcomes[rows, self.soft[judged].argmax(axis=1)]
        gains = trusted - outcomes[rows, self.overall[judged].argmax(axis=1)]
        return Trial(self.similarities[judged], gains, dataset.weights[judged])


@dataclass(frozen=True, slots=True)
class Trial:
    """`similarities`, `gains` of trusting the categories over the overall means, `weights`: each [prompts]."""

    similarities: Vector
    gains: Vector
    weights: Vector

    def gain_at(self, threshold: float) -> float:
        """Mean gain if only prompts at least this similar are trusted."""
        if len(self.gains) == 0:
            return 0.0
        return float(np.average(self.gains * (self.similarities >= threshold), weights=self.weights))


def fitted_threshold(familiar: Trial, foreign: Trial | None) -> float:
    """The lowest threshold that gains about as much as the best if familiar prompts and prompts of unseen groups
    come in equal parts, and at least the highest that keeps all but the premium of the gain on familiar prompts.

    The groups seen are few and cannot stand for all that may come. Candidates are quantiles of the familiar
    similarities; without any the gate stays open.
    """
    if len(familiar.similarities) == 0:
        return -1.0
    candidates = np.quantile(familiar.similarities, QUANTILES)
    gains = np.array([familiar.gain_at(threshold) for threshold in candidates])
    most = abs(gains.max())
    affordable = float(candidates[np.flatnonzero(gains >= gains.max() - PREMIUM * most)[-1]])
    if foreign is None:
        return affordable
    both = gains + np.array([foreign.gain_at(threshold) for threshold in candidates])
    good = np.flatnonzero(both >= both.max() - ABOUT_AS_GOOD * most)
    return max(affordable, float(candidates[good[0]]))
