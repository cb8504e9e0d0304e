"""All training prompts as one sparse matrix, with the n-grams and weights that serving will use.

Counting needs no training; choosing columns and their IDF does, so folds share the counts and choose anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from coe_server.routing.conversation import Conversation
from coe_server.routing.features import Features, Turn, buckets, distinct

Matrix = sp.csr_array

BLOCK = 4096  # prompts weighed at a time


def count_ngrams(conversations: Iterable[Conversation], bucket_bits: int) -> Matrix:
    """log2(1 + weighted count) of every bucket: [prompts, 2 ** bucket_bits]."""
    columns, counts = [], []
    for conversation in conversations:
        found, times = _counted(conversation.turns, bucket_bits)
        columns.append(found.astype(np.int32))
        counts.append(np.log2(1.0 + times).astype(np.float32))
    ends = np.cumsum([0, *(len(found) for found in columns)])
    shape = (len(columns), 1 << bucket_bits)
    return sp.csr_array((np.concatenate(counts), np.concatenate(columns), ends), shape=shape)


def choose_features(counts: Matrix, bucket_bits: int, min_prompts: int, max_columns: int) -> Features:
    """The buckets that at least `min_prompts` prompts have, the most frequent ones if there are too many.

    IDF is the smoothed one: log((1 + prompts) / (1 + prompts with it)) + 1.
    """
    prompts_with = np.bincount(counts.indices, minlength=counts.shape[1])
    kept = np.flatnonzero(prompts_with >= min(min_prompts, counts.shape[0]))
    if len(kept) > max_columns:
        most = np.argsort(-prompts_with[kept], kind="stable")[:max_columns]
        kept = np.sort(kept[most])
    idf = np.log((1.0 + counts.shape[0]) / (1.0 + prompts_with[kept])) + 1.0
    return Features.of(bucket_bits, kept.astype(np.int64), idf.astype(np.float32))


def weigh(counts: Matrix, features: Features) -> Matrix:
    """The prompts as `Features.vector` makes them, [prompts, columns]; words and runs each have length 1."""
    blocks = [_weighed(counts[at : at + BLOCK], features) for at in range(0, counts.shape[0], BLOCK)]
    return sp.csr_array(sp.vstack(blocks, format="csr"))


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
