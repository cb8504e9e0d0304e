"""Categories for prompts without labels: k-means clusters of their text, named by their most distinctive words.

As Avengers-Pro does (Zhang et al., 2025), on truncated TF-IDF vectors or on embeddings, whichever the run has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from warnings import catch_warnings, simplefilter

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.metrics import silhouette_score

from coe_server.routing.decision import GENERAL
from coe_server.routing.features import Floats, of_length_one, windowed
from router_training import Track
from router_training.classifier.features import choose_features, count_ngrams, embedding_matrix, weigh
from router_training.classifier.models import main_directions
from router_training.config import TrainingConfig
from router_training.data.checks import require_room
from router_training.data.dataset import Dataset

CANDIDATES = (3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
PROMPTS_PER_CATEGORY = 20  # on average, at least
DIRECTIONS = 32  # of the n-grams that clusters are made in
CLUSTERED, JUDGED = 20_000, 2_000  # prompts that clusters are found on, and that their number is chosen on
STARTS = 4  # of k-means, the best is kept
WORDS_IN_A_NAME = 3
_WORD = re.compile(r"[^\W\d_]{3,20}")

Ints = npt.NDArray[np.int64]


def with_categories(dataset: Dataset, config: TrainingConfig, track: Track) -> Dataset:
    """The data set as it is if any prompt has a category, else with discovered ones."""
    if (dataset.labels >= 0).any():
        return dataset
    labels = _clusters(_points(dataset, config), len(np.unique(dataset.copies)), config, track)
    return replace(dataset, labels=labels, categories=telling_names(_texts(dataset), labels))


def telling_names(texts: Sequence[str], labels: Ints) -> tuple[str, ...]:
    """A name for each label from 0 up: the words frequent in its texts and rare in the others, best first.

    Names are unique and consist of letters, digits and hyphens.
    """
    words = [set(_WORD.findall(text.lower())) - ENGLISH_STOP_WORDS for text in texts]
    having = [Counter[str]() for _ in range(int(labels.max()) + 1)]
    for label, found in zip(labels.tolist(), words, strict=True):
        having[label].update(found)
    everywhere = sum(having, Counter[str]())
    sizes = np.bincount(labels)
    names: list[str] = []
    for label, counts in enumerate(having):
        elsewhere = max(1, len(texts) - int(sizes[label]))
        telling = {
            word: count / sizes[label] - (everywhere[word] - count) / elsewhere for word, count in counts.items()
        }
        best = sorted(telling, key=lambda word: (-telling[word], word))[:WORDS_IN_A_NAME]
        names.append(_unused("-".join(best) or "prompts", names))
    return tuple(names)


def _unused(name: str, taken: Sequence[str]) -> str:
    if name not in {*taken, GENERAL}:
        return name
    return next(other for number in range(2, len(taken) + 3) if (other := f"{name}-{number}") not in taken)


def _points(dataset: Dataset, config: TrainingConfig) -> Floats:
    """[n, dimensions], each of length 1: embeddings, or the main directions of n-grams."""
    embeddings = embedding_matrix(dataset)
    if embeddings.shape[1]:
        return embeddings
    chosen = config.features
    counts = count_ngrams(dataset.conversations, chosen.bucket_bits)
    vectors = weigh(counts, choose_features(counts, chosen.bucket_bits, chosen.min_prompts, chosen.max_columns))
    return of_length_one(np.asarray(vectors @ main_directions(vectors, DIRECTIONS, config.seed)))


def _clusters(points: Floats, different: int, config: TrainingConfig, track: Track) -> Ints:
    """`different` is the number of prompts that are not copies of each other.

    There are fewer categories than different prompts, so that one has two of them: folds need that. There are also no
    more categories than different points.
    """
    drawn = np.random.default_rng(config.seed).permutation(len(points))[:CLUSTERED]
    room = min(different - 1, len(np.unique(points[drawn], axis=0)))
    count = config.data.categories
    if count == "auto":
        most = min(max(CANDIDATES[0], len(points) // PROMPTS_PER_CATEGORY), room)
        candidates = [candidate for candidate in CANDIDATES if candidate <= most] or [max(most, 1)]
        sample = points[drawn[:JUDGED]]
        apart = [_silhouette(sample, number, config.seed) for number in track(candidates, "discovering categories")]
        count = candidates[int(np.argmax(apart))]
    else:
        require_room(count, len(points), room + 1)
    found = _means(points[drawn], count, config.seed)
    _, labels = np.unique(found.predict(points), return_inverse=True)
    return labels.astype(np.int64)


def _means(points: Floats, count: int, seed: int) -> KMeans:
    with catch_warnings():  # points equal up to rounding give fewer clusters, which is harmless
        simplefilter("ignore", ConvergenceWarning)
        return KMeans(count, n_init=STARTS, random_state=seed).fit(points)


def _silhouette(points: Floats, count: int, seed: int) -> float:
    """How much nearer a prompt is to its own cluster than to the next one, -1 to 1 (Rousseeuw, 1987)."""
    if not 1 < count < len(np.unique(points, axis=0)):
        return -1.0
    labels = _means(points, count, seed).labels_
    return float(silhouette_score(points, labels)) if len(np.unique(labels)) > 1 else -1.0


def _texts(dataset: Dataset) -> list[str]:
    return ["\n".join(windowed(turn.text) for turn in talk.turns) for talk in dataset.conversations]
