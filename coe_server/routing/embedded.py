"""Turns -> vector with an embedding in it, alone or after the n-grams' columns; and the gates that go with it.

numpy only. Where the embedding needs a model or a network it comes with the turns, computed before `route`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coe_server.routing.features import Features, Floats, SparseVector, Turn, of_length_one
from coe_server.routing.gate import Gate, nearest_mean
from coe_server.routing.static_embeddings import StaticEmbeddings


@dataclass(frozen=True, slots=True)
class EmbeddedFeatures:
    """The columns of `ngrams` (None: none), then `dimensions` of an embedding of length 1.

    `table` embeds here and now; without it turns bring their embeddings. A prompt that has none keeps its n-grams
    only, and the gate takes it for one unlike the training data.
    """

    ngrams: Features | None
    dimensions: int
    table: StaticEmbeddings | None = None

    @property
    def columns(self) -> int:
        return self.first_dense + self.dimensions

    @property
    def first_dense(self) -> int:
        """The column in which the embedding begins."""
        return self.ngrams.columns if self.ngrams is not None else 0

    def vector(self, turns: Sequence[Turn]) -> SparseVector:
        dense = self._embedding(turns)
        places = np.arange(len(dense), dtype=np.int64) + self.first_dense
        if self.ngrams is None:
            return SparseVector(places, dense)
        sparse = self.ngrams.vector(turns)
        return SparseVector(np.concatenate((sparse.columns, places)), np.concatenate((sparse.weights, dense)))

    def _embedding(self, turns: Sequence[Turn]) -> Floats:
        embeddings = [turn.embedding for turn in turns]
        if self.table is not None:
            missing = [turn.text for turn in turns if turn.embedding is None]
            computed = iter(self.table.embed(missing) if missing else ())
            embeddings = [next(computed) if found is None else found for found in embeddings]
        return mean_embedding(embeddings, [turn.weight for turn in turns])


def mean_embedding(embeddings: Sequence[Floats | None], weights: Sequence[float]) -> Floats:
    """The weighted mean, of length 1; empty where an embedding is missing."""
    known = [one for one in embeddings if one is not None]
    if len(known) < len(embeddings) or not known:
        return np.empty(0, dtype=np.float32)
    (row,) = of_length_one(np.average(np.stack(known), axis=0, weights=weights)[np.newaxis])
    return np.asarray(row)


@dataclass(frozen=True, slots=True)
class NgramGate:
    """The gate of the n-grams alone, for prompts that have an embedding beside them: embeddings are never far apart
    and take strangers for familiar. They begin in column `first_dense`."""

    ngrams: Gate
    first_dense: int
    threshold: float

    @property
    def prototypes(self) -> int:
        return self.ngrams.prototypes

    def similarity(self, vector: SparseVector) -> float:
        """0 to 1; -1 for a prompt without an embedding, of which the classifier sees only half."""
        end = int(vector.columns.searchsorted(self.first_dense))
        if end == len(vector.columns):
            return -1.0
        return self.ngrams.similarity(SparseVector(vector.columns[:end], vector.weights[:end]))


@dataclass(frozen=True, slots=True)
class EmbeddedGate:
    """Where there are no n-grams: mean cosine between a prompt's embedding and its nearest `embeddings` [prototypes,
    dimensions], of length 1.

    `first_dense` is the column in which embeddings begin.
    """

    embeddings: Floats
    first_dense: int
    neighbours: int
    threshold: float

    @property
    def prototypes(self) -> int:
        return len(self.embeddings)

    def similarity(self, vector: SparseVector) -> float:
        """-1 to 1; -1 for a prompt without an embedding."""
        dense = vector.weights[vector.columns >= self.first_dense]
        if len(dense) == 0:
            return -1.0
        return float(nearest_mean((self.embeddings @ dense)[np.newaxis], self.neighbours)[0])
