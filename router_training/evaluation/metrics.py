"""The metrics of an evaluation. Pure: arrays in, numbers out.

Scores are in [0, 1]; weights [n] are any non-negative numbers. The zero router is the upper hull of the single
experts (what mixing two of them at random reaches), as RouterBench defines it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CALIBRATION_BINS = 15
ROUNDING = 1e-9  # relative: costs this close count as equal


@dataclass(frozen=True, slots=True)
class Hull:
    """Corners of a non-decreasing upper hull, cheapest first; flat beyond the last, nothing before the first."""

    costs: Vector
    scores: Vector

    def score_at(self, cost: float) -> float:
        """The best score that mixing reaches at this mean cost (the first corner's below it)."""
        return float(np.interp(cost, self.costs, self.scores))


def upper_hull(costs: Vector, scores: Vector) -> Hull:
    """The smallest concave, non-decreasing curve above all points; of those at one cost, up to rounding, the best."""
    corners: list[tuple[float, float]] = []
    for cost, score in sorted(zip(costs.tolist(), scores.tolist(), strict=True), key=lambda p: (p[0], -p[1])):
        if corners and score <= corners[-1][1]:
            continue
        if corners and cost <= corners[-1][0] * (1.0 + ROUNDING):
            corners.pop()
        while len(corners) >= 2 and _is_below(corners[-2], corners[-1], (cost, score)):
            corners.pop()
        corners.append((cost, score))
    return Hull(np.array([cost for cost, _ in corners]), np.array([score for _, score in corners]))


def aiq(hull: Hull, cheapest: float, dearest: float) -> float:
    """RouterBench's average improvement in quality: mean height of the hull from `cheapest` to `dearest`.

    Divided by dearest - cheapest (the published code divides by the largest cost). Before its first corner the
    hull counts as that corner; one cost only gives the height there.
    """
    if dearest <= cheapest:
        return hull.score_at(cheapest)
    inner = hull.costs[(hull.costs > cheapest) & (hull.costs < dearest)]
    costs = np.concatenate(([cheapest], inner, [dearest]))
    heights = np.interp(costs, hull.costs, hull.scores)
    return float(np.clip(np.trapezoid(heights, costs) / (dearest - cheapest), heights.min(), heights.max()))


def mean(values: Vector, weights: Vector) -> float:
    """Weighted mean, kept between the least and the largest value, where rounding would leave it."""
    return float(np.clip(values @ weights / weights.sum(), values.min(), values.max()))


def category_ceiling(outcomes: Vector, labels: Ints, weights: Vector) -> float | None:
    """Score if each true category is answered by its best expert in hindsight; None without labels.

    Prompts without a label form a category of their own.
    """
    if (labels < 0).all():
        return None
    total = sum(float((weights[labels == label] @ outcomes[labels == label]).max()) for label in np.unique(labels))
    return min(total / float(weights.sum()), float(outcomes.max()))  # up to rounding


def expected_calibration_error(confidences: Vector, hits: Vector, weights: Vector) -> float:
    """Mean distance of confidence and hit rate over 15 bins of equal mass (by count), weighted."""
    order = np.argsort(confidences, kind="stable")
    total = 0.0
    for rows in np.array_split(order, min(CALIBRATION_BINS, len(order))):
        share = weights[rows]
        total += abs(float(share @ (confidences[rows] - hits[rows])))
    return total / float(weights.sum())


def brier_score(probabilities: Vector, labels: Ints, weights: Vector) -> float:
    """Mean squared distance of `probabilities` [n, categories] from the truth, summed over categories.

    A label of -1 is a category the classifier does not know: its truth is zero everywhere, plus one missed.
    """
    truth = np.zeros_like(probabilities)
    known = np.flatnonzero(labels >= 0)
    truth[known, labels[known]] = 1.0
    squared = ((probabilities - truth) ** 2).sum(axis=1) + (labels < 0)
    return mean(squared, weights)


def risk_coverage(confidences: Vector, scores: Vector, weights: Vector, steps: int = 20) -> list[tuple[float, float]]:
    """(coverage, mean score of the most confident prompts up to it), from 1 / steps to 1."""
    order = np.argsort(-confidences, kind="stable")
    mass = np.cumsum(weights[order]) / weights.sum()
    gained = np.cumsum((weights * scores)[order])
    curve = []
    for step in range(1, steps + 1):
        last = min(int(np.searchsorted(mass, step / steps - 1e-12)), len(order) - 1)
        covered = mass[last] * weights.sum()
        if covered > 0.0:
            curve.append((step / steps, float(np.clip(gained[last] / covered, scores.min(), scores.max()))))
    return curve


@dataclass(frozen=True, slots=True)
class GapRecovered:
    """RouteLLM's curve for two experts: `recovered` is the part of their distance in score that is closed when
    `shares` of the traffic go to the dearer one, both from 0 to 1."""

    shares: Vector
    recovered: Vector

    @property
    def mean(self) -> float:
        """APGR: the area under the curve; 0.5 for a coin, more for a router."""
        return float(np.trapezoid(self.recovered, self.shares))

    def share_for(self, recovered: float) -> float:
        """CPT: the least share of traffic for the strong model that recovers this part of the score difference."""
        last = int(np.argmax(self.recovered >= recovered - 1e-12))
        if last == 0:
            return float(self.shares[0])
        low, high = self.recovered[last - 1], self.recovered[last]
        part = (recovered - low) / (high - low)
        return float(self.shares[last - 1] + part * (self.shares[last] - self.shares[last - 1]))


def gap_recovered(advantage: Vector, cheap: Vector, dear: Vector, weights: Vector) -> GapRecovered:
    """The curve that sends prompts to the dearer expert in order of `advantage` [n], equal ones together.

    `cheap` and `dear` [n] are the two experts' scores; the dearer one's mean must be the higher.
    """
    distance = mean(dear - cheap, weights)
    assert distance > 0.0, "the dearer expert's mean score must be higher"
    _, group = np.unique(-advantage, return_inverse=True)
    mass = np.bincount(group, weights) / weights.sum()
    closed = np.bincount(group, weights * (dear - cheap)) / weights.sum() / distance
    return GapRecovered(np.concatenate(([0.0], np.cumsum(mass))), np.concatenate(([0.0], np.cumsum(closed))))


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Paired resampling: a prompt is drawn with all its columns, so that what is compared stays comparable."""

    resamples: int
    seed: int

    def interval(self, columns: Vector, weights: Vector, statistic: Callable[[Vector], float]) -> tuple[float, float]:
        """95 % interval of `statistic`, which takes the weighted means [k] of one resample of `columns` [n, k]."""
        generator = np.random.default_rng(self.seed)
        count = len(weights)
        weighted = np.column_stack((columns * weights[:, np.newaxis], weights))
        results = []
        for _ in range(self.resamples):
            times = np.bincount(generator.integers(0, count, count), minlength=count)
            sums = times @ weighted
            if sums[-1] > 0.0:
                results.append(statistic(sums[:-1] / sums[-1]))
        low, high = np.percentile(results, [2.5, 97.5])
        return float(low), float(high)


def _is_below(left: tuple[float, float], point: tuple[float, float], right: tuple[float, float]) -> bool:
    """True if the middle point is on or under the line from left to right."""
    return (point[1] - left[1]) * (right[0] - left[0]) <= (right[1] - left[1]) * (point[0] - left[0])
