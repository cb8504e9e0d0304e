from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.artifact_tensors import gate_fault, gate_from_tensors, gate_shapes, gate_tensors
from coe_server.routing.embeddings import EmbeddedFeatures
from coe_server.routing.features import Features, SparseVector, Turn
from coe_server.routing.gate import EmbeddedGate, Gate, NgramGate, nearest_mean, postings
from coe_server.routing.manifest import FeatureSettings
from tests.routing.small_artifact import TEXTS, small_artifact

EMBEDDED = FeatureSettings(kind="endpoint", bucket_bits=14, model="words", dimensions=2)


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


def beside_embeddings() -> tuple[NgramGate, EmbeddedFeatures]:
    """The small artifact's n-grams and gate, with embeddings of two dimensions beside them."""
    plain = small_artifact()
    assert isinstance(plain.gate, Gate)
    assert isinstance(plain.features, Features)
    features = EmbeddedFeatures(plain.features, 2)
    return NgramGate(plain.gate, features.first_dense, plain.gate.threshold), features


@given(st.floats(-1.0, 1.0), st.sampled_from([*TEXTS.values(), "bonjour python", "zzqx"]))
def test_the_gate_of_ngrams_sees_no_embedding_but_wants_one(first: float, text: str) -> None:
    gate, features = beside_embeddings()
    assert features.ngrams is not None
    bare = features.ngrams.vector((Turn(text),))
    embedding = np.array([first, np.sqrt(1.0 - first**2)], dtype=np.float32)
    assert gate.similarity(features.vector((Turn(text, embedding=embedding),))) == gate.ngrams.similarity(bare)
    assert gate.similarity(features.vector((Turn(text),))) == -1.0


@pytest.mark.parametrize("compared", ["n-grams", "embeddings"])
def test_gates_beside_embeddings_come_back_from_tensors_those_of_old_too(compared: str) -> None:
    gate, features = beside_embeddings()
    embeddings = np.tile(np.array([0.6, 0.8], dtype=np.float32), (gate.prototypes, 1))
    old = EmbeddedGate(embeddings, features.first_dense, gate.ngrams.neighbours, gate.threshold)
    kept = gate if compared == "n-grams" else old
    manifest = small_artifact(features=EMBEDDED).manifest
    assert features.ngrams is not None
    tensors = {"kept": features.ngrams.kept.astype(np.int32), **gate_tensors(kept)}
    shapes = gate_shapes(tensors, manifest)
    assert {name: (tensors[name].dtype.type, tensors[name].shape) for name in shapes} == shapes
    assert gate_fault(tensors, manifest) is None
    again = gate_from_tensors(tensors, manifest, features)
    assert type(again) is type(kept)
    vector = features.vector((Turn("bonjour python merci", embedding=embeddings[0]),))
    assert again.similarity(vector) == kept.similarity(vector)
