"""Drift detection of a router's traffic: compares the decisions that are carried out with its training prompts."""

from __future__ import annotations

import logging
import math

import numpy as np

from coe_server.journal.drift import OUTSIDE, Drift, DriftWatch, Reference
from coe_server.routing.artifact import HeldOut
from coe_server.routing.decision import RoutingDecision

logger = logging.getLogger(__name__)


def reference_of(held_out: HeldOut, categories: list[str]) -> Reference | None:
    """Statistics of held-out training prompts under this router; None if the artifact has none."""
    weights = held_out.weights.astype(np.float64)
    total = float(weights.sum())
    if total <= 0.0:
        return None
    probabilities = held_out.probabilities.astype(np.float64)
    outside = held_out.trust <= 0.0
    shares = np.bincount(probabilities.argmax(axis=1)[~outside], weights[~outside], len(categories)) / total
    confidences = probabilities.max(axis=1)
    mean = float(np.average(confidences, weights=weights))
    return Reference(
        mix={**dict(zip(categories, shares.tolist(), strict=True)), OUTSIDE: float(weights[outside].sum()) / total},
        confidence=mean,
        confidence_deviation=math.sqrt(float(np.average((confidences - mean) ** 2, weights=weights))),
        prompts=len(weights),
    )


class Traffic:
    """Watches the traffic of one router."""

    def __init__(self, reference: Reference, router_version: str) -> None:
        self.reference = reference
        self._watch = DriftWatch(reference)
        self._left_band = self._watch.left_band
        self._version = router_version

    @property
    def drift(self) -> Drift:
        return self._watch.now

    def see(self, decision: RoutingDecision) -> None:
        """Count one decision that was carried out. Requests for a named expert do not count."""
        if not decision.probabilities or decision.confidence is None:
            return
        likeliest = max(decision.probabilities, key=decision.probabilities.__getitem__)
        if not self._watch.see(likeliest if decision.gate.inside else None, decision.confidence):
            return
        before, self._left_band = self._left_band, self._watch.left_band
        for reading, left in self._left_band.items():
            if left != before[reading]:
                self._tell(reading, left)

    def _tell(self, reading: str, left: bool) -> None:
        now, reference = self._watch.now, self.reference
        logger.warning(
            "drift: %s %s after %d requests: mix off by %.2f, out of domain %.2f (training %.2f), confidence %.2f"
            " (training %.2f), router %s",
            reading,
            "left the band of its training data" if left else "is back in the band of its training data",
            *(now.requests, now.mix_distance, now.outside, reference.outside, now.confidence, reference.confidence),
            self._version,
        )
