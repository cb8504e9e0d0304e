"""All training prompts as sparse vectors, with the n-grams and weights of serving, and their Gram matrix.

Counting needs no training. Columns and their IDF are chosen on all training prompts; a prompt that a fold leaves out
keeps only the columns that occur in the fold's prompts. A regularised linear model has as many unknowns in the dual as
there are prompts, so the Gram matrix is kept for small data sets, and every fold takes its part of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from coe_server.errors import DatasetError
from coe_server.routing.conversation import Conversation
from coe_server.routing.embeddings import EmbeddedFeatures, mean_embedding
from coe_server.routing.features import Features, Floats, Turn, Vectoriser, buckets, distinct
from coe_server.routing.frame import NEWEST, unframed
from router_training import Track, in_silence
from router_training.data.dataset import Dataset

if TYPE_CHECKING:
    from router_training.config import FeatureSettings

Matrix = sp.csr_array

BLOCK = 4096  # prompts weighed at a time
ROOM = 1 << 24  # entries of a block: 64 MB; malloc does not return freed blocks below 32 MB to the system
COUNTED = 1 << 22  # entries at a time


def count_ngrams(conversations: Iterable[Conversation], bucket_bits: int) -> Matrix:
    """log2(1 + weighted count) of every bucket: [prompts, 2 ** bucket_bits]."""
    rows = GrowingMatrix(1 << bucket_bits)
    for conversation in conversations:
        found, times = _counted(conversation.turns, bucket_bits)
        rows.append(found.astype(np.int32), np.log2(1.0 + times).astype(np.float32), [len(found)])
    return rows.complete()


class GrowingMatrix:
    """A sparse matrix built row by row in little more memory than the result.

    Many prompts need gigabytes, and concatenating a list of rows would need them twice.
    """

    def __init__(self, columns: int, room: int = ROOM) -> None:
        """`room` is the number of entries allocated at a time."""
        self._columns, self._room = columns, room
        self._indices: list[npt.NDArray[np.int32]] = []
        self._values: list[npt.NDArray[np.float32]] = []
        self._lengths: list[int] = []
        self._used = 0

    def append(self, indices: npt.NDArray[np.int32], values: npt.NDArray[np.float32], lengths: Iterable[int]) -> None:
        """Append rows of these lengths."""
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
        """The matrix of all rows; no row can be added afterwards."""
        self._close_block()
        ends = np.concatenate(([0], np.cumsum(self._lengths, dtype=np.int64)))
        kind = np.int32 if ends[-1] < 1 << 31 else np.int64
        values, indices = _drained(self._values, np.float32), _drained(self._indices, np.int32)
        shape = (len(self._lengths), self._columns)
        return sp.csr_array((values, indices.astype(kind, copy=False), ends.astype(kind)), shape=shape)

    def _close_block(self) -> None:
        """Trim the last block to its used length."""
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
    return Features.of(bucket_bits, kept.astype(np.int64), idf.astype(np.float32), NEWEST)


def rows_with(matrix: Matrix) -> npt.NDArray[np.int64]:
    """[columns]: the number of rows with an entry there.

    Works in blocks, because counting doubles each index's size.
    """
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
    # the constructor would copy parts of less than half
    rows.data, rows.indices = matrix.data[low:high], matrix.indices[low:high]
    rows.indptr = matrix.indptr[first : end + 1] - low
    return rows


def beside(ngrams: Matrix | None, embeddings: npt.NDArray[np.float32]) -> Matrix:
    """The n-grams' columns (None: none), then those of `embeddings` [n, dimensions], as serving has them."""
    dense = sp.csr_array(embeddings)
    return dense if ngrams is None else sp.csr_array(sp.hstack([ngrams, dense], format="csr", dtype=np.float32))


def _counted(turns: Sequence[Turn], bucket_bits: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    parts = [distinct(buckets(unframed(turn.text), bucket_bits)) for turn in turns]
    if len(parts) == 1:
        ((columns, times),) = parts
        return columns, times * turns[0].weight
    every_bucket = np.concatenate([found for found, _ in parts])
    every_count = np.concatenate([times * turn.weight for (_, times), turn in zip(parts, turns, strict=True)])
    columns = np.unique(every_bucket)
    totals = np.bincount(np.searchsorted(columns, every_bucket), every_count, len(columns))
    return columns, totals.astype(np.float64)


def _weighed(counts: Matrix, features: Features) -> Matrix:
    """Works on a few prompts at a time: intermediate memory is several times the result's."""
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
    """The blocks as one array; each block is freed once it is copied."""
    whole = np.empty(sum(len(block) for block in blocks), dtype=kind)
    at = len(whole)
    while blocks:
        block = blocks.pop()
        at -= len(block)
        whole[at : at + len(block)] = block
    return whole


Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

KEPT_PROMPTS = 12_000  # up to which the matrix is kept: 576 MB
COMMON_COLUMNS = 6_000  # multiplied as dense blocks: a tenth of the columns takes nine tenths of the time
DENSE_BLOCK = 1_000
PARTS = 4  # of the prompts, multiplied side by side where the matrix is not kept


@dataclass(frozen=True, slots=True)
class Gram:
    """n prompts: `vectors` [n, columns] and, where it is kept, `matrix` [n, n] of their inner products."""

    vectors: Matrix
    matrix: Floats | None = None

    def __len__(self) -> int:
        return int(self.vectors.shape[0])

    def kept(self) -> Gram:
        """The same with its matrix computed, unless there are too many prompts: it pays off for several fits."""
        if self.matrix is not None or len(self) > KEPT_PROMPTS:
            return self
        return Gram(self.vectors, inner_products(self.vectors))

    def rows(self, chosen: Ints) -> Gram:
        """Some of the prompts."""
        if len(chosen) == len(self) and np.array_equal(chosen, np.arange(len(self))):
            return self
        part = None if self.matrix is None else self.matrix[chosen].take(chosen, axis=1)
        return Gram(self.vectors[chosen], part)

    def times(self, duals: Vector) -> Vector:
        """[n, k]: the matrix times `duals` [n, k]."""
        single = duals.astype(np.float32)
        if self.matrix is not None:
            return np.asarray(self.matrix @ single, dtype=np.float64)
        return _times_side_by_side(self.vectors, single)

    def coefficients(self, duals: Vector) -> Floats:
        """[columns, k]: the linear map that `duals` [n, k] stand for."""
        return np.asarray(self.vectors.T @ duals.astype(np.float32))


def _times_side_by_side(vectors: Matrix, duals: Floats) -> Vector:
    """[n, k]: computed in parts on several cores; the parts do not depend on the machine."""
    bounds = np.linspace(0, vectors.shape[0], PARTS + 1).astype(np.int64).tolist()
    sides = [slice(low, high) for low, high in itertools.pairwise(bounds)]
    parts = [rows_between(vectors, side.start, side.stop) for side in sides]
    with ThreadPoolExecutor(PARTS) as threads:
        shares = threads.map(lambda part, side: part.T @ duals[side], parts, sides)
        coefficients = np.sum(list(shares), axis=0)
        products = list(threads.map(lambda part: part @ coefficients, parts))
    return np.concatenate(products).astype(np.float64)


def inner_products(vectors: Matrix) -> Floats:
    """[n, n], from vectors [n, columns]."""
    count = vectors.shape[0]
    prompts_with = np.bincount(vectors.indices, minlength=vectors.shape[1])
    order = np.argsort(-prompts_with, kind="stable")
    products = np.zeros((count, count), dtype=np.float32)
    for at in range(0, min(COMMON_COLUMNS, len(order)), DENSE_BLOCK):
        common = np.sort(order[at : min(at + DENSE_BLOCK, COMMON_COLUMNS)])
        dense = np.asarray(vectors[:, common].toarray(), dtype=np.float32)
        products += dense @ dense.T
    rare = sp.csr_array(vectors[:, np.sort(order[COMMON_COLUMNS:])])
    across = sp.csr_array(rare.T)
    for at in range(0, count, DENSE_BLOCK):
        products[at : at + DENSE_BLOCK] += (rare[at : at + DENSE_BLOCK] @ across).toarray()
    return products


@dataclass(frozen=True, slots=True)
class Basis:
    """`features` as serving has them, and n prompts in them."""

    features: Vectoriser
    gram: Gram

    def __len__(self) -> int:
        return len(self.gram)

    def rows(self, chosen: Ints) -> Basis:
        """Some of the prompts, with the same features."""
        return Basis(self.features, self.gram.rows(chosen))

    def kept(self) -> Basis:
        """The same with a computed Gram matrix, for many fits."""
        return Basis(self.features, self.gram.kept())

    def unseen(self, left_out: Ints, seen: Ints, min_prompts: int) -> Matrix:
        """The vectors of the prompts `left_out`, with the columns of the prompts `seen` only."""
        return narrowed(self.gram.vectors[left_out], self.known(seen, min_prompts), self.features)

    def known(self, seen: Ints, min_prompts: int) -> npt.NDArray[np.bool_]:
        """[columns]: which columns occur in enough of the prompts `seen`."""
        vectors = self.gram.vectors[seen]
        return np.asarray(rows_with(vectors) >= min(min_prompts, len(seen)))


def basis_of(counts: Matrix, dataset: Dataset, settings: FeatureSettings, track: Track = in_silence) -> Basis:
    """Features chosen from these prompts, and the prompts in them. Raises DatasetError where there are none."""
    features = _chosen(counts, dataset, settings)
    return Basis(features, Gram(vectorised(counts, dataset, features, track)))


def vectorised(counts: Matrix, dataset: Dataset, features: Vectoriser, track: Track = in_silence) -> Matrix:
    """The prompts as `features.vector` makes them, [prompts, columns]."""
    if isinstance(features, EmbeddedFeatures):
        ngrams = weigh(counts, features.ngrams, track) if features.ngrams is not None else None
        return beside(ngrams, embedding_matrix(dataset))
    assert isinstance(features, Features), f"{type(features).__name__} has no matrix form"
    return weigh(counts, features, track)


def narrowed(vectors: Matrix, known: npt.NDArray[np.bool_], features: Vectoriser) -> Matrix:
    """The vectors [n, columns] without unknown n-grams; words and runs have length 1 again, embeddings are as they
    were."""
    ngrams = features.ngrams if isinstance(features, EmbeddedFeatures) else features
    if ngrams is None:
        return vectors
    assert isinstance(ngrams, Features), f"{type(ngrams).__name__} has no columns of words and runs"
    rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
    parts = 3 * rows + (vectors.indices >= ngrams.word_columns) + (vectors.indices >= ngrams.columns)
    dense = vectors.indices >= ngrams.columns
    weights = np.where(known[vectors.indices] | dense, vectors.data, np.float32(0.0))
    lengths = np.sqrt(np.bincount(parts, weights.astype(np.float64) ** 2, 3 * vectors.shape[0]))
    lengths[lengths == 0.0] = 1.0
    lengths[2::3] = 1.0
    shape = (int(vectors.shape[0]), int(vectors.shape[1]))
    found = sp.csr_array(((weights / lengths[parts]).astype(np.float32), vectors.indices, vectors.indptr), shape=shape)
    found.eliminate_zeros()
    return found


def _chosen(counts: Matrix, dataset: Dataset, settings: FeatureSettings) -> Vectoriser:
    ngrams = None
    if settings.ngrams:
        ngrams = choose_features(counts, settings.bucket_bits, settings.min_prompts, settings.max_columns)
        if ngrams.columns == 0:
            raise DatasetError(f"{len(dataset)} training prompts have no n-gram in common")
    if ngrams is None or settings.kind != "hashed-ngrams":
        return EmbeddedFeatures(ngrams, embedding_matrix(dataset).shape[1], normalisation=NEWEST)
    return ngrams


def embedding_matrix(dataset: Dataset) -> Floats:
    """[n, dimensions]: the embedding part of a prompt's vector, as in serving; [n, 0] without embeddings."""
    rows = [
        mean_embedding([turn.embedding for turn in turns], [turn.weight for turn in turns])
        for turns in (conversation.turns for conversation in dataset.conversations)
    ]
    if len({len(row) for row in rows}) > 1:
        raise DatasetError(f"embeddings of different lengths: {sorted({len(row) for row in rows})} dimensions")
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)
