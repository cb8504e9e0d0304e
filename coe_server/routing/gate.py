"""Is this prompt like the training data? Mean similarity to its nearest prototypes, against a threshold.

Outside their training data trained routers are worse than a constant choice. Low confidence does not detect such
prompts; distance does. Independent of categories and experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from coe_server.routing.features import Floats, SparseVector

Postings = npt.NDArray[np.void]

POSTING = np.dtype([("row", np.int32), ("weight", np.float32)])  # interleaved: look-ups are limited by memory access
NARROW = 1e-9  # a shorter ramp is a step


class Similarity(Protocol):
    """A gate: a prompt is inside if its similarity is at least `threshold`."""

    @property
    def prototypes(self) -> int:
        """The number of training prompts to compare with."""

    @property
    def threshold(self) -> float:
        """The least similarity of a prompt inside."""

    def similarity(self, vector: SparseVector) -> float:
        """Similarity to the training data; larger is more similar."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Inverted index: the prototypes with column c, and their weights, are `postings[starts[c]:starts[c + 1]]`.

    `starts` [columns + 1]. Very common columns may be left empty: they cost most and distinguish least. A prototype's
    weights are those of its complete vector, scaled to length 1.
    """

    starts: npt.NDArray[np.int64]
    postings: Postings
    prototypes: int
    neighbours: int
    threshold: float

    def similarity(self, vector: SparseVector) -> float:
        """Mean cosine to the nearest prototypes, 0 to 1; 0 for a prompt without any known n-gram."""
        length = math.sqrt(vector.weights @ vector.weights)
        if length == 0.0:
            return 0.0
        starts = self.starts.take(vector.columns)
        counts = self.starts[1:].take(vector.columns)
        counts -= starts
        kept = counts.nonzero()[0]  # more than half of a prompt's columns are empty
        if len(kept) == 0:
            return 0.0
        counts = counts.take(kept)
        ends = counts.cumsum()
        places = np.arange(ends[-1])
        places += (starts.take(kept) - ends + counts).repeat(counts)
        found = self.postings.take(places)
        shared = vector.weights.take(kept).repeat(counts)
        shared *= found["weight"]
        products = np.bincount(found["row"], shared, self.prototypes)
        count = min(self.neighbours, len(products))
        products.partition(len(products) - count)
        return float(products[-count:].sum()) / (length * count)


@dataclass(frozen=True, slots=True)
class NgramGate:
    """A gate on the n-grams of prompts with embeddings, which begin in column `first_dense`.

    Embeddings of any two texts are similar, so a gate on them would accept prompts unlike the training data.
    """

    ngrams: Gate
    first_dense: int
    threshold: float

    @property
    def prototypes(self) -> int:
        return self.ngrams.prototypes

    def similarity(self, vector: SparseVector) -> float:
        """0 to 1; -1 for a prompt without an embedding, since the classifier lacks half of its features."""
        end = int(vector.columns.searchsorted(self.first_dense))
        if end == len(vector.columns):
            return -1.0
        return self.ngrams.similarity(SparseVector(vector.columns[:end], vector.weights[:end]))


@dataclass(frozen=True, slots=True)
class EmbeddedGate:
    """A gate without n-grams: mean cosine between a prompt's embedding and its nearest prototypes.

    `embeddings` [prototypes, dimensions], of length 1. `first_dense`: the first column of the embedding.
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


def postings(rows: npt.NDArray[np.integer], weights: npt.NDArray[np.floating]) -> Postings:
    """The postings of prototypes `rows` [n] with `weights` [n]."""
    found = np.empty(len(rows), dtype=POSTING)
    found["row"], found["weight"] = rows, weights
    return found


def nearest_mean(similarities: npt.NDArray[np.floating], neighbours: int) -> npt.NDArray[np.float64]:
    """The mean of each row's `neighbours` largest values (of all values if there are fewer)."""
    count = min(neighbours, similarities.shape[1])
    largest = np.partition(similarities, similarities.shape[1] - count, axis=1)[:, -count:]
    return np.asarray(largest.sum(axis=1) / count, dtype=np.float64)


def trust_in(
    similarities: npt.NDArray[np.float64] | np.float64, threshold: float, full_trust: float
) -> npt.NDArray[np.float64]:
    """The weight of the categories' scores: 0 below `threshold`, 1 from `full_trust`, linear between them."""
    if full_trust - threshold < NARROW:
        return np.asarray(np.where(similarities >= threshold, 1.0, 0.0))
    return np.asarray(np.minimum(np.maximum((similarities - threshold) / (full_trust - threshold), 0.0), 1.0))
