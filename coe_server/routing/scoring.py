"""Step one: a text's category probabilities, gate reading, and the expected score of each expert.

Independent of costs, budgets and residency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import Readout, normalised_entropy
from coe_server.routing.decision import GENERAL, GateReading, Kept, Reason
from coe_server.routing.features import Turn
from coe_server.routing.gate import NARROW

if TYPE_CHECKING:
    from coe_server.routing.artifact import Artifact

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PromptScores:
    """The readings of classifier and gate for a text.

    `probabilities` [categories] and `expected` [experts] are in the artifact's order. `trust`: `mapped`, or the reason
    why the experts' overall mean scores are used instead of the categories.
    """

    probabilities: Sequence[float]
    expected: Sequence[float]
    likeliest: str
    confidence: float
    gate: GateReading
    trust: Reason

    @property
    def category(self) -> str:
        return self.likeliest if self.trust == "mapped" else GENERAL


SURE_OF_A_NEW_TOPIC = 0.6  # least category probability of a turn that counts as a new topic


def is_new_topic(newest: PromptScores, kept: Kept) -> bool:
    """True if the newest turn alone clearly belongs to another category; "thanks, go on" belongs to none."""
    is_clear = newest.trust == "mapped" and newest.confidence >= SURE_OF_A_NEW_TOPIC
    return is_clear and newest.likeliest != kept.category


class Scorer:
    """Scores prompts with an artifact's features, classifier and gate. Stateless; no I/O."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        names = artifact.expert_names
        self._features = artifact.features
        self._gate = artifact.gate
        self._categories = manifest.categories
        self._thresholds = manifest.thresholds
        self._readout = Readout.of(artifact.classifier, artifact.corrections)
        self._scores = np.array([[manifest.score[c][e].score for e in names] for c in manifest.categories])
        self._overall = [manifest.overall[e].score for e in names]

    def score(self, turns: Sequence[Turn], min_confidence: float | None) -> PromptScores:
        """Text -> features -> category probabilities -> expected scores.

        `min_confidence` replaces the artifact's threshold for the likeliest category's probability.
        """
        thresholds, threshold = self._thresholds, self._gate.threshold
        vector = self._features.vector(turns)
        probabilities, corrections = self._readout.read(vector)
        similarity = self._gate.similarity(vector)
        inside = similarity >= threshold
        shares = probabilities.tolist()
        confidence = max(shares)
        least = thresholds.min_confidence if min_confidence is None else min_confidence
        trust: Reason = "mapped"
        if not inside:
            trust = "out_of_domain"
        elif confidence < least or self._is_uncertain(probabilities):
            trust = "general"
        expected = self._mixed(probabilities, corrections, similarity) if trust == "mapped" else self._overall
        gate = GateReading(similarity, threshold, inside)
        return PromptScores(shares, expected, self._categories[shares.index(confidence)], confidence, gate, trust)

    def _is_uncertain(self, probabilities: Vector) -> bool:
        largest = self._thresholds.max_entropy
        return largest < 1.0 and bool(normalised_entropy(probabilities) > largest)  # the entropy is at most 1

    def _mixed(self, probabilities: Vector, corrections: Sequence[float], similarity: float) -> Sequence[float]:
        """Expected scores over all categories plus corrections; near the gate they approach the overall means."""
        expected = (probabilities @ self._scores).tolist()
        if corrections:
            expected = [score + correction for score, correction in zip(expected, corrections, strict=True)]
        threshold, full_trust = self._gate.threshold, self._thresholds.full_trust
        ramp = 0.0 if full_trust is None else full_trust - threshold
        trust = 1.0 if ramp < NARROW else min((similarity - threshold) / ramp, 1.0)  # the prompt is inside the gate
        return [mean + trust * (score - mean) for score, mean in zip(expected, self._overall, strict=True)]
