"""Prompts with nearly the same words: MinHash proposes pairs, the words decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from coe_server.routing.conversation import Conversation
from coe_server.routing.features import normalised, word_hashes
from router_training import Track
from router_training.data.dataset import Dataset

LEAST_RESEMBLANCE = 0.8
BANDS, ROWS_PER_BAND = 16, 4  # finds 99.98 % of pairs that share 0.8, and proposes 12 % of those that share 0.3
CLEARLY_LESS = 0.6  # pairs whose signatures agree less are not compared word by word

Words = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]


def with_near_duplicates(dataset: Dataset, track: Track) -> Dataset:
    """The data set with `copies` set: near-duplicates have the same number."""
    return replace(dataset, copies=near_duplicates(dataset.conversations, track))


def near_duplicates(conversations: Sequence[Conversation], track: Track) -> Ints:
    """[n]: the first row in each prompt's connected set of near-duplicates."""
    words = [_words(conversation) for conversation in track(conversations, "looking for near-duplicates")]
    signatures = _signatures(words)
    parents = np.arange(len(words))
    for band in range(BANDS):
        for first, other in _proposals(signatures, band):
            one, another = _root(parents, first), _root(parents, other)
            if one != another and resemblance(words[first], words[other]) >= LEAST_RESEMBLANCE:
                parents[max(one, another)] = min(one, another)
    return np.array([_root(parents, row) for row in range(len(words))], dtype=np.int64)


def resemblance(one: Words, other: Words) -> float:
    """The Jaccard similarity of two ascending arrays without repeats."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def _words(conversation: Conversation) -> Words:
    return np.unique(word_hashes(normalised("\n".join(turn.text for turn in conversation.turns))))


def _signatures(words: Sequence[Words]) -> Words:
    """[n, BANDS * ROWS_PER_BAND]: MinHash signatures, one hash function per column."""
    generator = np.random.default_rng(0)  # fixed hash functions, independent of the run's seed
    factors = generator.integers(0, 1 << 32, BANDS * ROWS_PER_BAND, dtype=np.uint32) | np.uint32(1)
    offsets = generator.integers(0, 1 << 32, BANDS * ROWS_PER_BAND, dtype=np.uint32)
    signatures = generator.integers(0, 1 << 32, (len(words), len(factors)), dtype=np.uint32)
    for row, one in enumerate(words):
        if len(one):  # a prompt without words keeps a unique signature
            signatures[row] = (one[:, np.newaxis] * factors + offsets).min(axis=0)
    return signatures


def _proposals(signatures: Words, band: int) -> Ints:
    """[pairs, 2]: (first, other) of prompts equal in this band; each is paired with the first only."""
    columns = signatures[:, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]
    _, first, inverse = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    firsts = first[inverse.ravel()]
    others = np.flatnonzero(firsts != np.arange(len(firsts)))
    agreement = (signatures[firsts[others]] == signatures[others]).mean(axis=1)
    likely = others[agreement >= CLEARLY_LESS]
    return np.stack((firsts[likely], likely), axis=1)


def _root(parents: Ints, row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = int(parents[row])
    return row
