"""The gate's prototypes, drawn from the training prompts, and how alike to them many prompts are at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from coe_server.routing.embeddings import EmbeddedFeatures
from coe_server.routing.features import Features, Vectoriser, of_length_one
from coe_server.routing.gate import EmbeddedGate, Gate, NgramGate, nearest_mean, postings
from router_training.config import TrainingConfig
from router_training.step_one.vectors import Matrix

# The gate's look-ups per prompt, on average, which are most of what it takes. A word tells more than a run: it gets
# most of them. Runs alone are left where nothing stands between words, as in Japanese.
WORD_LOOK_UPS = 4_000
RUN_LOOK_UPS = 2_000
NO_THRESHOLD = -1.0
BATCH = 1024

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]


def fitted_gate(vectors: Matrix, features: Vectoriser, config: TrainingConfig) -> Gate | NgramGate | EmbeddedGate:
    """Prototypes drawn from the prompts; lets everything in. N-grams judge alone, embeddings where there are none."""
    drawn = np.random.default_rng(config.seed).permutation(vectors.shape[0])[: config.gate.prototypes]
    prototypes = vectors[np.sort(drawn)]
    if isinstance(features, EmbeddedFeatures) and features.ngrams is not None:
        gate = _filed_by_column(prototypes[:, : features.first_dense], features.ngrams.word_columns, config)
        return NgramGate(gate, features.first_dense, NO_THRESHOLD)
    if isinstance(features, EmbeddedFeatures):
        embeddings = of_length_one(prototypes[:, features.first_dense :].toarray())
        return EmbeddedGate(embeddings, features.first_dense, config.gate.neighbours, NO_THRESHOLD)
    assert isinstance(features, Features), f"{type(features).__name__} has no columns of words and runs"
    return _filed_by_column(prototypes, features.word_columns, config)


def _filed_by_column(prototypes: Matrix, words: int, config: TrainingConfig) -> Gate:
    lengths = np.where((lengths := _lengths(prototypes)) > 0.0, lengths, 1.0)
    counts = np.bincount(prototypes.indices, minlength=prototypes.shape[1])
    rows = np.repeat(np.arange(len(lengths)), np.diff(prototypes.indptr))
    telling = np.concatenate(
        (
            _telling(counts[:words], len(lengths), WORD_LOOK_UPS),
            _telling(counts[words:], len(lengths), RUN_LOOK_UPS),
        )
    )
    kept = np.flatnonzero(telling[prototypes.indices] & (prototypes.data != 0.0))
    weights = prototypes.data[kept] * (1.0 / lengths).astype(np.float32)[rows[kept]]
    by_column = sp.csc_array(sp.coo_array((weights, (rows[kept], prototypes.indices[kept])), shape=prototypes.shape))
    return Gate(
        starts=by_column.indptr.astype(np.int64),
        postings=postings(by_column.indices, by_column.data),
        prototypes=len(lengths),
        neighbours=config.gate.neighbours,
        threshold=NO_THRESHOLD,
    )


def _telling(counts: Ints, prototypes: int, look_ups: int) -> npt.NDArray[np.bool_]:
    """[columns]: the rarest ones, as many as a prompt can look up so many times.

    A column that n prototypes have turns up in n of `prototypes` prompts and then costs n look-ups.
    """
    order = np.argsort(counts, kind="stable")
    spent = np.cumsum(counts[order].astype(np.float64) ** 2) / prototypes
    telling = np.zeros(len(counts), dtype=bool)
    telling[order[spent <= look_ups]] = True
    return telling


def gate_similarities(vectors: Matrix, gate: Gate | NgramGate | EmbeddedGate) -> Vector:
    """The gate's `similarity` of many prompts at once."""
    if isinstance(gate, NgramGate):
        return gate_similarities(vectors[:, : gate.first_dense], gate.ngrams)
    if isinstance(gate, EmbeddedGate):
        dense = vectors[:, gate.first_dense :]
        return _nearest(dense, sp.csr_array(gate.embeddings.T), gate.neighbours)
    shape = (gate.prototypes, vectors.shape[1])
    prototypes = sp.csc_array((gate.postings["weight"], gate.postings["row"], gate.starts), shape=shape).T
    lengths = np.where((lengths := _lengths(vectors)) > 0.0, lengths, 1.0)
    return np.asarray(_nearest(vectors, sp.csr_array(prototypes), gate.neighbours) / lengths)


def _nearest(vectors: Matrix, prototypes: Matrix, neighbours: int) -> Vector:
    batches = range(0, vectors.shape[0], BATCH)
    parts = [nearest_mean((vectors[at : at + BATCH] @ prototypes).toarray(), neighbours) for at in batches]
    return np.concatenate(parts)


def _lengths(vectors: Matrix) -> Vector:
    rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
    return np.sqrt(np.bincount(rows, vectors.data.astype(np.float64) ** 2, vectors.shape[0]))
