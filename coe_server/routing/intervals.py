"""Time-uniform intervals of a mean: they hold at every look at once, also if one looks after each rating. Pure.

Asymptotic confidence sequences, for means of martingale differences (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics, 2024), with standard
deviation s after t values:

    mean +- s * sqrt(2 (t rho^2 + 1) / (t^2 rho^2) * log(sqrt(t rho^2 + 1) / alpha))

A 95 % interval of a fixed number of values, looked at again and again, misses the mean sooner or later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ALPHA = 0.05  # chance that the interval ever misses the mean
TIGHTEST_AT = 1_000  # number of values at which the interval is narrowest for its level
RHO_SQUARED = (-2.0 * math.log(ALPHA) + math.log(-2.0 * math.log(ALPHA) + 1.0)) / TIGHTEST_AT
FEWEST = 30  # values of each side; with fewer nothing is said, as the sequence is asymptotic
MOST_NEEDED = 10**7


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of `count` values with its interval; `needed`: further values until it is narrow enough."""

    mean: float
    low: float
    high: float
    count: int
    needed: int = 0

    @property
    def is_apart(self) -> bool:
        """True if the interval does not contain 0."""
        return self.low > 0.0 or self.high < 0.0


def interval(values: Vector, width: float = 0.03) -> Interval:
    """The interval of the mean of `values`, and how many more it takes until it reaches `width` on each side."""
    count, mean = len(values), float(values.mean())
    deviation = float(values.std(ddof=1)) if count > 1 else 1.0
    half = deviation * reach(count)
    return Interval(mean, mean - half, mean + half, count, _needed(count, deviation, width))


def reach(count: int, alpha: float = ALPHA) -> float:
    """Half the interval's width after `count` values, in standard deviations."""
    grown = count * RHO_SQUARED + 1.0
    return math.sqrt(2.0 * grown / (count**2 * RHO_SQUARED) * math.log(math.sqrt(grown) / alpha))


def _needed(count: int, deviation: float, width: float) -> int:
    """The smallest further number of values at which a half width of `width` is reached, by bisection."""
    if deviation * reach(count) <= width:
        return 0
    low, high = count, MOST_NEEDED
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if deviation * reach(middle) <= width else (middle, high)
    return high - count


def differences(experts: Ints, scores: Vector, probabilities: Vector, one: int, other: int) -> Vector:
    """[n]: unbiased values of the difference between two experts' mean scores, from turns of drawn experts.

    `experts` [n]: which was drawn, with `probabilities` [n, experts] known before; `scores` [n]; in order of time.
    Each expert's mean so far is the baseline (augmented inverse propensity weights: Robins, Rotnitzky and Zhao,
    "Estimation of regression coefficients when some regressors are not always observed", 1994). It uses earlier turns
    only, so the values are martingale differences also where the probabilities were learned.
    """
    return _side(experts, scores, probabilities, one) - _side(experts, scores, probabilities, other)


def _side(experts: Ints, scores: Vector, probabilities: Vector, expert: int) -> Vector:
    mine = experts == expert
    total, count = np.cumsum(mine * scores), np.cumsum(mine)
    before = (np.concatenate(([0.0], total[:-1])) + 0.5) / (np.concatenate(([0], count[:-1])) + 1.0)
    chances = np.maximum(probabilities[:, expert], 1e-6)
    return np.asarray(before + np.where(mine, (scores - before) / chances, 0.0))
