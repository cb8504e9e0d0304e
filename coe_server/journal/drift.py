"""Detects drift of the traffic from the training data, with e-detectors, which bound false alarms. Pure.

Each routed prompt gives these values in [0, 1]: an indicator per category, an indicator for outside the gate, the
classifier's confidence, and 1 minus the confidence. The null hypothesis of each is that its mean is at most `edge`,
a little above its mean on held-out training prompts. A detector bets against it with stakes set by past values only:

    evidence <- max(evidence, 1) * (1 + stake * (value - edge)),   E[factor | past] <= 1 while the mean is in its band

This is the e-CUSUM of Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change
detection" (2023), with the bets of Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting"
(2023). Each restart costs 1, so P(alarm within n requests) <= n / threshold for traffic in its band, whatever its
distribution. The threshold keeps the expected false alarms of all detectors over HORIZON requests below ALARMS.
A batch job that sends one prompt a thousand times counts as drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

ALARMS = 0.01  # upper bound on expected false alarms of all detectors over HORIZON requests
HORIZON = 20_000
TOLERANCE = 0.05  # absolute, for shares and the mean confidence
LEAST_TOLERANCE, RELATIVE = 0.02, 0.25  # for small shares: absolute, and relative
SURE = 3.0  # standard errors of the training figures, added to the band
MEMORY = 100.0  # effective number of past requests in stakes and readings
MOST_STAKED = 0.9  # of the evidence
OUTSIDE = ""  # the category of prompts outside the gate


@dataclass(frozen=True, slots=True)
class Reference:
    """Statistics of `prompts` held-out training prompts.

    Shares by category (OUTSIDE: outside the gate; they sum to 1), mean and standard deviation of the confidence.
    """

    mix: Mapping[str, float]
    confidence: float
    confidence_deviation: float
    prompts: int

    @property
    def outside(self) -> float:
        return self.mix.get(OUTSIDE, 0.0)


@dataclass(frozen=True, slots=True)
class Drift:
    """Statistics of recent traffic, and the readings outside their band: `categories`, `out_of_domain`, `confidence`.

    `mix_distance`: total variation distance of the category shares from training's, 0 to 1.
    """

    requests: int
    mix_distance: float
    outside: float
    confidence: float
    left_band: Mapping[str, bool]


class Detectors:
    """k detectors, for means of values in [0, 1]: each gathers evidence that its mean exceeds its edge (`edges` [k]).

    An alarm ends when the recent mean is in its band again; then the evidence is reset.
    """

    def __init__(self, edges: Vector, means: Vector, deviations: Vector) -> None:
        self.limit = math.log(HORIZON * len(edges) / ALARMS)
        self.evidence = np.zeros(len(edges))  # as logarithms
        self.alarmed = np.zeros(len(edges), dtype=np.bool_)
        self.means = means.copy()
        self._edges = edges
        self._variances = np.maximum(deviations**2, 1e-4)
        self._highest_stakes = np.where(edges < 1.0, MOST_STAKED / np.maximum(edges, 0.05), 0.0)  # no mean is above 1

    def see(self, values: Vector) -> bool:
        """Add one value per detector, `values` [k]. Returns True if an alarm began or ended."""
        gains = np.maximum(self.means - self._edges, 0.0)
        stakes = np.minimum(gains / (self._variances + gains**2), self._highest_stakes)
        self.evidence = np.maximum(self.evidence, 0.0) + np.log1p(stakes * (values - self._edges))
        off = values - self.means
        self._variances += (off**2 - self._variances) / MEMORY
        self.means += off / MEMORY
        before, over = self.alarmed, self.alarmed & (self.means <= self._edges)
        self.evidence[over] = 0.0
        self.alarmed = (before & ~over) | (self.evidence >= self.limit)
        return self.alarmed.tobytes() != before.tobytes()


class DriftWatch:
    """Follows the routed prompts one by one."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.requests = 0
        self._names = [*(name for name in reference.mix if name != OUTSIDE), OUTSIDE]
        self._shares = np.array([reference.mix.get(name, 0.0) for name in self._names])
        count, sure = max(reference.prompts, 1), reference.confidence
        shares = np.maximum(self._shares, 0.5 / count)  # a category without training prompts may have some traffic
        tolerances = np.minimum(TOLERANCE, LEAST_TOLERANCE + RELATIVE * shares)
        tolerances[-1] = TOLERANCE
        deviations = np.sqrt(shares * (1.0 - shares))
        margin = TOLERANCE + SURE * reference.confidence_deviation / math.sqrt(count)
        self._detectors = Detectors(
            edges=np.array(
                [*(shares + tolerances + SURE * deviations / math.sqrt(count)), sure + margin, 1 - sure + margin]
            ),
            means=np.array([*self._shares, sure, 1 - sure]),
            deviations=np.array([*deviations, reference.confidence_deviation, reference.confidence_deviation]),
        )

    def see(self, category: str | None, confidence: float) -> bool:
        """Add a prompt; `category` None: outside the gate. Returns True if a reading may have crossed its band."""
        values = np.zeros(len(self._names) + 2)
        values[self._names.index(category) if category is not None else -3] = 1.0
        values[-2:] = confidence, 1.0 - confidence
        self.requests += 1
        return self._detectors.see(values)

    @property
    def left_band(self) -> dict[str, bool]:
        alarmed = self._detectors.alarmed
        return {
            "categories": bool(alarmed[:-3].any()),
            "out_of_domain": bool(alarmed[-3]),
            "confidence": bool(alarmed[-2:].any()),
        }

    @property
    def now(self) -> Drift:
        means = self._detectors.means
        distance = float(np.abs(means[:-2] - self._shares).sum()) / 2
        return Drift(self.requests, distance, float(means[-3]), float(means[-2]), self.left_band)
