"""What every fit of a training run shares: the features chosen, and all prompts seen with them.

Columns and their IDF come from all training prompts, which have no say in them but their words. A prompt that a fold
leaves out is read with the columns only that the prompts seen have: what nobody taught stays unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from coe_server.errors import DatasetError
from coe_server.routing.embeddings import EmbeddedFeatures
from coe_server.routing.features import Features, Vectoriser
from router_training.config import FeatureSettings
from router_training.data.dataset import Dataset
from router_training.data.embeddings import embedding_matrix
from router_training.progress import Track, in_silence
from router_training.step_one.gram import Gram
from router_training.step_one.vectors import Matrix, beside, choose_features, rows_with, weigh

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
        """The same, made ready for many fits."""
        return Basis(self.features, self.gram.kept())

    def unseen(self, left_out: Ints, seen: Ints, min_prompts: int) -> Matrix:
        """The vectors of prompts `left_out`, as those who know the prompts `seen` alone would make them."""
        return narrowed(self.gram.vectors[left_out], self.known(seen, min_prompts), self.features)

    def known(self, seen: Ints, min_prompts: int) -> npt.NDArray[np.bool_]:
        """[columns]: which columns enough of the prompts `seen` have."""
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
            raise DatasetError(f"{len(dataset)} training prompts have no n-gram in common to learn from")
    if ngrams is None or settings.kind != "hashed-ngrams":
        return EmbeddedFeatures(ngrams, embedding_matrix(dataset).shape[1])
    return ngrams
