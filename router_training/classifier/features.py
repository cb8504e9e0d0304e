"""All training prompts as sparse vectors, with the n-grams and weights of serving.

Counting needs no training. Columns and their IDF are chosen on all training prompts; a prompt that a fold leaves out
keeps only the columns that occur in the fold's prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from coe_server.errors import DatasetError
from coe_server.routing.conversation import Conversation
from coe_server.routing.embeddings import EmbeddedFeatures, mean_embedding
from coe_server.routing.features import Features, Floats, Turn, Vectoriser, buckets, distinct
from coe_server.routing.frame import NEWEST, unframed
from router_training import Track, in_silence
from router_training.classifier.gram import Gram
from router_training.classifier.sparse_rows import GrowingMatrix, Matrix, rows_between, rows_with
from router_training.data.dataset import Dataset

if TYPE_CHECKING:
    from router_training.config import FeatureSettings


BLOCK = 4096  # prompts weighed at a time


def count_ngrams(conversations: Iterable[Conversation], bucket_bits: int) -> Matrix:
    """log2(1 + weighted count) of every bucket: [prompts, 2 ** bucket_bits]."""
    rows = GrowingMatrix(1 << bucket_bits)
    for conversation in conversations:
        found, times = _counted(conversation.turns, bucket_bits)
        rows.append(found.astype(np.int32), np.log2(1.0 + times).astype(np.float32), [len(found)])
    return rows.complete()


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


def weigh(counts: Matrix, features: Features, track: Track = in_silence) -> Matrix:
    """The prompts as `Features.vector` makes them, [prompts, columns]; words and runs each have length 1."""
    rows = GrowingMatrix(features.columns)
    for at in track(range(0, counts.shape[0], BLOCK), "weighing n-grams"):
        some = _weighed(rows_between(counts, at, at + BLOCK), features)
        rows.append(some.indices, some.data, np.diff(some.indptr).tolist())
    return rows.complete()


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


Ints = npt.NDArray[np.int64]


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
