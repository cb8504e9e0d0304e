"""All training prompts as one sparse matrix, with the n-grams and weights that serving will use.

Counting needs no training; choosing columns and their IDF does, so folds share the counts and choose anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from coe_server.routing.conversation import Conversation
from coe_server.routing.features import Features, Turn, buckets, distinct
from router_training.progress import Track, in_silence

Matrix = sp.csr_array

BLOCK = 4096  # prompts weighed at a time
ROOM = 1 << 24  # entries of a block: 64 MB, for malloc keeps what it was given back of less than 32 MB
COUNTED = 1 << 22  # entries at a time


def count_ngrams(conversations: Iterable[Conversation], bucket_bits: int) -> Matrix:
    """log2(1 + weighted count) of every bucket: [prompts, 2 ** bucket_bits]."""
    rows = GrowingMatrix(1 << bucket_bits)
    for conversation in conversations:
        found, times = _counted(conversation.turns, bucket_bits)
        rows.append(found.astype(np.int32), np.log2(1.0 + times).astype(np.float32), [len(found)])
    return rows.complete()


class GrowingMatrix:
    """A sparse matrix to which rows are added, in little more memory than it has at the end: many prompts come to
    gigabytes, and a list of rows put together would need them twice."""

    def __init__(self, columns: int, room: int = ROOM) -> None:
        """`room` is for how many entries memory is taken at a time."""
        self._columns, self._room = columns, room
        self._indices: list[npt.NDArray[np.int32]] = []
        self._values: list[npt.NDArray[np.float32]] = []
        self._lengths: list[int] = []
        self._used = 0

    def append(self, indices: npt.NDArray[np.int32], values: npt.NDArray[np.float32], lengths: Iterable[int]) -> None:
        """Rows of these lengths, one after the other."""
        if not self._indices or self._used + len(indices) > self._room:
            self._close_block()
            room = max(self._room, len(indices))
            self._indices.append(np.empty(room, dtype=np.int32))
            self._values.append(np.empty(room, dtype=np.float32))
            self._used = 0
        end = self._used + len(indices)
        self._indices[-1][self._used : end] = indices
        self._values[-1][self._used : end] = values
        self._used = end
        self._lengths += lengths

    def complete(self) -> Matrix:
        """All rows; nothing can be added any more."""
        self._close_block()
        ends = np.concatenate(([0], np.cumsum(self._lengths, dtype=np.int64)))
        kind = np.int32 if ends[-1] < 1 << 31 else np.int64
        values, indices = _drained(self._values, np.float32), _drained(self._indices, np.int32)
        shape = (len(self._lengths), self._columns)
        return sp.csr_array((values, indices.astype(kind, copy=False), ends.astype(kind)), shape=shape)

    def _close_block(self) -> None:
        """Nothing more goes into the last block."""
        if self._indices:
            self._indices[-1] = self._indices[-1][: self._used]
            self._values[-1] = self._values[-1][: self._used]


def choose_features(counts: Matrix, bucket_bits: int, min_prompts: int, max_columns: int) -> Features:
    """The buckets that at least `min_prompts` prompts have, the most frequent ones if there are too many.

    IDF is the smoothed one: log((1 + prompts) / (1 + prompts with it)) + 1.
    """
    prompts_with = rows_with(counts)
    kept = np.flatnonzero(prompts_with >= min(min_prompts, counts.shape[0]))
    if len(kept) > max_columns:
        most = np.argsort(-prompts_with[kept], kind="stable")[:max_columns]
        kept = np.sort(kept[most])
    idf = np.log((1.0 + counts.shape[0]) / (1.0 + prompts_with[kept])) + 1.0
    return Features.of(bucket_bits, kept.astype(np.int64), idf.astype(np.float32))


def rows_with(matrix: Matrix) -> npt.NDArray[np.int64]:
    """[columns]: how many rows have an entry there. Some at a time: counting makes each index twice as long."""
    found = np.zeros(matrix.shape[1], dtype=np.int64)
    for at in range(0, len(matrix.indices), COUNTED):
        found += np.bincount(matrix.indices[at : at + COUNTED], minlength=matrix.shape[1])
    return found


def weigh(counts: Matrix, features: Features, track: Track = in_silence) -> Matrix:
    """The prompts as `Features.vector` makes them, [prompts, columns]; words and runs each have length 1."""
    rows = GrowingMatrix(features.columns)
    for at in track(range(0, counts.shape[0], BLOCK), "weighing n-grams"):
        some = _weighed(rows_between(counts, at, at + BLOCK), features)
        rows.append(some.indices, some.data, np.diff(some.indptr).tolist())
    return rows.complete()


def rows_between(matrix: Matrix, first: int, end: int) -> Matrix:
    """Some rows of a matrix, not copied."""
    end = min(end, matrix.shape[0])
    low, high = matrix.indptr[first], matrix.indptr[end]
    rows = sp.csr_array((end - first, matrix.shape[1]), dtype=matrix.dtype)
    # given to the constructor, parts of less than half would be copied
    rows.data, rows.indices = matrix.data[low:high], matrix.indices[low:high]
    rows.indptr = matrix.indptr[first : end + 1] - low
    return rows


def beside(ngrams: Matrix | None, embeddings: npt.NDArray[np.float32]) -> Matrix:
    """The n-grams' columns (None: none), then those of `embeddings` [n, dimensions], as serving has them."""
    dense = sp.csr_array(embeddings)
    return dense if ngrams is None else sp.csr_array(sp.hstack([ngrams, dense], format="csr", dtype=np.float32))


def _counted(turns: Sequence[Turn], bucket_bits: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    parts = [distinct(buckets(turn.text, bucket_bits)) for turn in turns]
    if len(parts) == 1:
        ((columns, times),) = parts
        return columns, times * turns[0].weight
    every_bucket = np.concatenate([found for found, _ in parts])
    every_count = np.concatenate([times * turn.weight for (_, times), turn in zip(parts, turns, strict=True)])
    columns = np.unique(every_bucket)
    totals = np.bincount(np.searchsorted(columns, every_bucket), every_count, len(columns))
    return columns, totals.astype(np.float64)


def _weighed(counts: Matrix, features: Features) -> Matrix:
    """A few prompts at a time: what it takes on the way is several times what it gives."""
    prompts = counts.shape[0]
    columns = features.column_of[counts.indices]
    kept = np.flatnonzero(columns >= 0)
    rows, columns = np.repeat(np.arange(prompts), np.diff(counts.indptr))[kept], columns[kept]
    weights = counts.data[kept] * features.idf[columns]
    halves = 2 * rows + (columns >= features.word_columns)  # words and runs of each prompt
    lengths = np.sqrt(np.bincount(halves, weights.astype(np.float64) ** 2, 2 * prompts))
    lengths[lengths == 0.0] = 1.0
    ends = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=prompts)))).astype(np.int32)
    weights /= lengths.astype(np.float32)[halves]
    return sp.csr_array((weights, columns, ends), shape=(prompts, features.columns))


def _drained(blocks: list[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    """The blocks as one array; each is given back once it was copied."""
    whole = np.empty(sum(len(block) for block in blocks), dtype=kind)
    at = len(whole)
    while blocks:
        block = blocks.pop()
        at -= len(block)
        whole[at : at + len(block)] = block
    return whole
