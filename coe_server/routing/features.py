"""Text -> sparse vector: words, word pairs and runs of 3 to 5 bytes, hashed into buckets and weighted by TF-IDF.

numpy only, without Python loops over n-grams: a prompt of 1 KB takes a fraction of a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from coe_server.routing.frame import Normalisation, read_as

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

WINDOW_BYTES = 2048  # of a longer turn this much is read from its start and from its end
CHARACTER_RUNS = (3, 4, 5)
PRODUCT_CELLS = 1 << 18  # per block: 1 MB

_MULTIPLIER = np.uint32(0x01000193)  # the FNV prime: spreads bytes over 32 bits
_WORD_SEED = np.uint32(0x9E3779B1)
_PAIR_SEED = np.uint32(0x85EBCA77)
_RUN_SEEDS = (np.uint32(0xC2B2AE3D), np.uint32(0x27D4EB2F), np.uint32(0x165667B1))
_SPACES = bytes(range(33)) + b"\x7f"
_TO_SPACE = bytes.maketrans(_SPACES, b" " * len(_SPACES))
_IS_WORD = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
_POWERS = np.cumprod(np.full(2 * WINDOW_BYTES + 2, _MULTIPLIER, dtype=np.uint32), dtype=np.uint32)
_INVERSE = np.uint32(pow(int(_MULTIPLIER), -1, 1 << 32))
_INVERSE_POWERS = np.cumprod(np.full(2 * WINDOW_BYTES + 2, _INVERSE, dtype=np.uint32), dtype=np.uint32) * _MULTIPLIER
_MOST_NGRAMS = 5 * (2 * WINDOW_BYTES + 2)  # per text: three orders of runs, words and word pairs
_LOGARITHMS = np.log2(1.0 + np.arange(_MOST_NGRAMS)).astype(np.float32)  # of 1 + a count


@dataclass(frozen=True, slots=True)
class Turn:
    """One user turn and its weight (the newest 1, older ones less).

    `embedding` [dimensions], of length 1, is set if features need an embedding that `route` cannot compute.
    """

    text: str
    weight: float = 1.0
    embedding: Floats | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SparseVector:
    """Ascending `columns` [n] and their `weights` [n]; the parts of words and of runs each have length 1."""

    columns: Ints
    weights: Floats

    def times(self, matrix: Floats) -> Floats:
        """[r]: the product with `matrix` [columns, r].

        In blocks: for one large product BLAS would start threads, and waiting for them on a busy machine takes far
        longer than the work.
        """
        step = max(1, PRODUCT_CELLS // matrix.shape[1])
        if len(self.columns) <= step:
            return np.asarray(self.weights @ matrix.take(self.columns, axis=0))
        product: Floats = self.weights[:step] @ matrix.take(self.columns[:step], axis=0)
        for at in range(step, len(self.columns), step):
            product += self.weights[at : at + step] @ matrix.take(self.columns[at : at + step], axis=0)
        return product


class Vectoriser(Protocol):
    """Text -> vector, the same in training and in serving: hashed n-grams, embeddings, or both side by side."""

    @property
    def columns(self) -> int:
        """The length of a vector."""

    def vector(self, turns: Sequence[Turn]) -> SparseVector:
        """The turns as one vector; no I/O."""


@dataclass(frozen=True, slots=True)
class Features:
    """Trained n-gram features: the kept buckets (ascending) and their inverse document frequency.

    Buckets below `2 ** (bucket_bits - 1)` are for words and pairs, the rest for byte runs. `normalisation`: how the
    texts of training were read.
    """

    bucket_bits: int
    kept: Ints
    idf: Floats
    column_of: npt.NDArray[np.int32]
    word_columns: int
    normalisation: Normalisation

    @classmethod
    def of(cls, bucket_bits: int, kept: Ints, idf: Floats, normalisation: Normalisation = "plain") -> Features:
        """Features with their lookup table from bucket to column (-1: not kept)."""
        column_of = np.full(1 << bucket_bits, -1, dtype=np.int32)
        column_of[kept] = np.arange(len(kept), dtype=np.int32)
        words = int(np.searchsorted(kept, 1 << (bucket_bits - 1)))
        return cls(bucket_bits, kept, idf, column_of, words, normalisation)

    @property
    def columns(self) -> int:
        return len(self.kept)

    def vector(self, turns: Sequence[Turn]) -> SparseVector:
        """The turns as one vector."""
        counted = [self._counted(turn.text) for turn in turns]
        if len(turns) == 1 and turns[0].weight == 1.0:
            columns, counts = counted[0]
            weights = _LOGARITHMS.take(counts)
        else:
            columns, totals = _merged(counted, [turn.weight for turn in turns])
            weights = np.log2(1.0 + totals).astype(np.float32)
        weights *= self.idf.take(columns)
        split = int(columns.searchsorted(self.word_columns))
        _scale_to_length_one(weights[:split])
        _scale_to_length_one(weights[split:])
        return SparseVector(columns, weights)

    def _counted(self, text: str) -> tuple[Ints, Ints]:
        columns = self.column_of.take(buckets(read_as(text, self.normalisation), self.bucket_bits))
        columns = columns[columns >= 0]  # the others were not kept in training
        columns.sort()
        return _runs(columns)


def buckets(text: str, bucket_bits: int) -> npt.NDArray[np.uint32]:
    """The bucket of every n-gram of the text, with repeats, in arbitrary order."""
    data = normalised(text)
    words = word_hashes(data)
    first = len(words)
    found = np.empty(first + sum(max(0, len(data) - order + 1) for order in CHARACTER_RUNS), dtype=np.uint32)
    found[:first] = words
    _hash_runs(data, found[first:])
    found >>= np.uint32(33 - bucket_bits)
    found[first:] |= np.uint32(1 << (bucket_bits - 1))
    return found


def normalised(text: str) -> npt.NDArray[np.uint8]:
    """Lower-case UTF-8 between two spaces; runs of white space become one space, long texts lose their middle."""
    data = windowed(text).lower().encode("utf-8", "replace")
    if len(data) > 2 * WINDOW_BYTES:
        data = data[:WINDOW_BYTES] + data[-WINDOW_BYTES:]
    data = b" " + data.translate(_TO_SPACE) + b" "
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    return np.frombuffer(data, dtype=np.uint8)


def well_formed(text: str) -> str:
    """The text with "?" for each lone surrogate, as `normalised` reads it; UTF-8 cannot encode surrogates."""
    return text.encode("utf-8", "replace").decode()


def windowed(text: str) -> str:
    """The part of a text that is read: all of it, or the start and the end of a long one."""
    if len(text) <= 2 * WINDOW_BYTES:
        return text
    return text[:WINDOW_BYTES] + " " + text[-WINDOW_BYTES:]


def distinct(columns: npt.NDArray[np.integer]) -> tuple[Ints, npt.NDArray[np.float64]]:
    """The distinct values, ascending, and their counts."""
    values, counts = _runs(np.sort(columns))
    return values, counts.astype(np.float64)


def _runs(ordered: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
    """The distinct values of an ascending array, and their counts."""
    is_edge = np.empty(len(ordered) + 1, dtype=bool)  # start of each value, and the end
    is_edge[0] = is_edge[-1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_edge[1:-1])
    edges = is_edge.nonzero()[0]
    starts = edges[:-1]
    return ordered.take(starts).astype(np.int64), edges[1:] - starts


def of_length_one(rows: npt.NDArray[np.floating]) -> Floats:
    """The rows [n, dimensions] scaled to length 1; zeros stay zeros."""
    lengths = np.sqrt((np.asarray(rows, dtype=np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.asarray(rows / np.where(lengths > 0.0, lengths, 1.0), dtype=np.float32)


def _hash_runs(data: npt.NDArray[np.uint8], into: npt.NDArray[np.uint32]) -> None:
    """Hashes of all runs of 3, 4 and 5 bytes; each order has its own odd factor."""
    values = data.astype(np.uint32)
    rolling = values[:-1] * _MULTIPLIER
    rolling += values[1:]
    at = 0
    for seed, order in zip(_RUN_SEEDS, CHARACTER_RUNS, strict=True):
        count = len(values) - order + 1
        if count <= 0:
            break
        rolling = rolling[:count]
        rolling *= _MULTIPLIER
        rolling += values[order - 1 :]
        np.multiply(rolling, seed, out=into[at : at + count])
        at += count


def word_hashes(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Hashes of all words and of all pairs of adjacent words.

    A word's hash is the sum of its bytes times powers of the multiplier, counted from its first byte. It is computed
    with powers counted from the text's first byte, then multiplied by the inverse of the word's first power.
    """
    inside = _IS_WORD.take(data)  # starts and ends with False: the text is between two spaces
    edges = (inside[1:] != inside[:-1]).nonzero()[0] + 1
    if len(edges) == 0:
        return np.empty(0, dtype=np.uint32)
    starts, ends = edges[::2], edges[1::2]
    words: npt.NDArray[np.uint32] = np.add.reduceat(data * _POWERS[: len(data)], edges, dtype=np.uint32)[::2]
    words *= _INVERSE_POWERS.take(starts)
    words += (ends - starts).astype(np.uint32)
    hashes = np.empty(2 * len(words) - 1, dtype=np.uint32)
    np.multiply(words, _WORD_SEED, out=hashes[: len(words)])
    pairs = hashes[len(words) :]
    np.multiply(words[:-1], _PAIR_SEED, out=pairs)
    pairs += words[1:]
    pairs ^= pairs >> np.uint32(15)
    pairs *= _PAIR_SEED
    return hashes


def _merged(counted: Sequence[tuple[Ints, Ints]], weights: Sequence[float]) -> tuple[Ints, npt.NDArray[np.float64]]:
    every_column = np.concatenate([columns for columns, _ in counted])
    every_count = np.concatenate([counts * weight for (_, counts), weight in zip(counted, weights, strict=True)])
    columns = np.unique(every_column)
    totals = np.bincount(np.searchsorted(columns, every_column), every_count, len(columns))
    return columns, totals.astype(np.float64)


def _scale_to_length_one(weights: Floats) -> None:
    length = math.sqrt(weights @ weights)
    if length > 0.0:
        weights /= length
