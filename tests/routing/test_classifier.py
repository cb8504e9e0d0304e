from __future__ import annotations

import numpy as np
import pytest

from coe_server.routing.classifier import Corrections, Readout
from coe_server.routing.features import Turn
from tests.routing.small_artifact import TEXTS, small_artifact


@pytest.mark.parametrize("text", [*TEXTS.values(), " ".join(TEXTS.values()), ""])
def test_one_walk_reads_what_two_would(text: str) -> None:
    artifact = small_artifact()
    vector = artifact.features.vector((Turn(text),))
    coefficients = np.random.default_rng(0).random((artifact.features.columns, 4), dtype=np.float32)
    probabilities, corrections = Readout.of(artifact.classifier, Corrections(coefficients)).read(vector)
    assert probabilities == pytest.approx(artifact.classifier.probabilities(vector), abs=1e-6)
    assert corrections == pytest.approx(vector.weights @ coefficients[vector.columns], rel=1e-5)


def test_without_corrections_there_are_none() -> None:
    artifact = small_artifact()
    vector = artifact.features.vector((Turn(TEXTS["code"]),))
    probabilities, corrections = Readout.of(artifact.classifier, None).read(vector)
    assert probabilities.tolist() == artifact.classifier.probabilities(vector).tolist()
    assert len(corrections) == 0
