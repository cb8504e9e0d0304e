"""Step one: text -> what classifier and gate make of it, and what each expert's score is expected to be.

Knows nothing of costs, budgets or where experts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.artifact import Artifact
from coe_server.routing.classifier import Readout, normalised_entropy
from coe_server.routing.decision import GENERAL, GateReading, Reason
from coe_server.routing.features import Turn
from coe_server.routing.gate import trust_in

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the classifier and the gate make of a text.

    `expected` are the experts' scores. `trust` is `mapped`, or the reason why the experts' overall means decide
    instead of the categories.
    """

    probabilities: Vector
    expected: Vector
    likeliest: str
    confidence: float
    gate: GateReading
    trust: Reason

    @property
    def category(self) -> str:
        return self.likeliest if self.trust == "mapped" else GENERAL


class Reader:
    """An artifact's first step. Computes and never waits; has no state."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        names = artifact.expert_names
        self._artifact = artifact
        self._readout = Readout.of(artifact.classifier, artifact.corrections)
        self._scores = np.array([[manifest.score[c][e].score for e in names] for c in manifest.categories])
        self._overall = np.array([manifest.overall[e].score for e in names])

    def read(self, turns: Sequence[Turn], min_confidence: float | None) -> Reading:
        """Step one: text -> features -> category probabilities, and whether to believe them."""
        manifest = self._artifact.manifest
        vector = self._artifact.features.vector(turns)
        probabilities, corrections = self._readout.read(vector)
        similarity = self._artifact.gate.similarity(vector)
        inside = similarity >= self._artifact.gate.threshold
        top = int(probabilities.argmax())
        confidence = float(probabilities[top])
        least = manifest.thresholds.min_confidence if min_confidence is None else min_confidence
        unsure = confidence < least or normalised_entropy(probabilities) > manifest.thresholds.max_entropy
        trust: Reason = "out_of_domain" if not inside else "general" if unsure else "mapped"
        gate = GateReading(similarity, self._artifact.gate.threshold, inside)
        expected = self._mixed(probabilities, corrections, similarity) if trust == "mapped" else self._overall
        return Reading(probabilities, expected, manifest.categories[top], confidence, gate, trust)

    def _mixed(self, probabilities: Vector, corrections: Vector, similarity: float) -> Vector:
        """Expected scores over all categories, corrected by the prompt's own words; the overall means near the gate."""
        threshold = self._artifact.gate.threshold
        expected = probabilities @ self._scores
        if len(corrections):
            expected += corrections
        full_trust = self._artifact.manifest.thresholds.full_trust
        trust = trust_in(np.float64(similarity), threshold, threshold if full_trust is None else full_trust)
        return np.asarray(self._overall + trust * (expected - self._overall))
