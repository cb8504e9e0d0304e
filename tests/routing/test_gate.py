from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.features import SparseVector
from coe_server.routing.gate import Gate, nearest_mean, postings


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8))
def test_the_similarity_is_the_mean_cosine_to_the_nearest_prototypes(seed: int, prototypes: int, near: int) -> None:
    generator = np.random.default_rng(seed)
    columns = 12
    dense = generator.random((prototypes, columns)) * (generator.random((prototypes, columns)) < 0.5)
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-9)
    prompt = generator.random(columns) * (generator.random(columns) < 0.5)
    places, rows = np.nonzero(dense.T)
    gate = Gate(
        np.searchsorted(places, np.arange(columns + 1)).astype(np.int64),
        postings(rows, dense.T[places, rows]),
        prototypes,
        near,
        0.0,
    )
    present = np.flatnonzero(prompt)
    found = gate.similarity(SparseVector(present, prompt[present].astype(np.float32)))
    cosines = dense @ prompt / max(float(np.linalg.norm(prompt)), 1e-9)
    assert found == pytest.approx(float(np.sort(cosines)[-near:].mean()), abs=1e-5)


def test_with_fewer_prototypes_than_neighbours_all_count() -> None:
    assert nearest_mean(np.array([[0.2, 0.4]]), 5).tolist() == pytest.approx([0.3])
