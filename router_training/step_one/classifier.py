"""Step one, fitted: features, calibrated classifier and gate prototypes, and what they say of unseen prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.model_selection import GroupKFold, StratifiedKFold

from coe_server.errors import DatasetError
from coe_server.routing.calibration import Calibration, Temperature
from coe_server.routing.classifier import CategoryModel, Classifier
from coe_server.routing.embedded import EmbeddedFeatures, EmbeddedGate
from coe_server.routing.features import Features, Vectoriser, of_length_one
from coe_server.routing.gate import Gate, nearest_mean
from router_training.config import TrainingConfig
from router_training.data.dataset import Dataset
from router_training.data.embeddings import embedding_matrix
from router_training.step_one.models import batch_logits, fit_model
from router_training.step_one.semi_supervised import self_trained
from router_training.step_one.vectors import Matrix, beside, choose_features, weigh

LOOK_UPS_PER_PROMPT = 8_000  # of the gate, on average: about a tenth of a millisecond
NO_THRESHOLD = -1.0
BATCH = 1024

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fold:
    """Row numbers: fit on `seen`, predict `left_out`."""

    seen: Ints
    left_out: Ints


@dataclass(frozen=True, slots=True)
class StepOne:
    """What serving needs to read a prompt."""

    features: Vectoriser
    classifier: Classifier
    gate: Gate | EmbeddedGate


@dataclass(frozen=True, slots=True)
class Unseen:
    """What step one says of prompts it was not fitted on: `logits` [n, categories], `similarities` [n]."""

    logits: Vector
    similarities: Vector


def fit_step_one(counts: Matrix, dataset: Dataset, config: TrainingConfig) -> StepOne:
    """Features, classifier (not calibrated) and gate (open) from these prompts."""
    features = _choose(counts, dataset, config)
    vectors = vectorised(counts, dataset, features)
    return StepOne(features, _fit_classifier(vectors, dataset, config), _fit_gate(vectors, features, config))


def training_vectors(counts: Matrix, dataset: Dataset, config: TrainingConfig) -> Matrix:
    """The prompts as a step one that was fitted on all of them sees them."""
    return vectorised(counts, dataset, _choose(counts, dataset, config))


def vectorised(counts: Matrix, dataset: Dataset, features: Vectoriser) -> Matrix:
    """The prompts as `features.vector` makes them, [prompts, columns]."""
    if isinstance(features, EmbeddedFeatures):
        ngrams = weigh(counts, features.ngrams) if features.ngrams is not None else None
        return beside(ngrams, embedding_matrix(dataset))
    assert isinstance(features, Features), f"{type(features).__name__} has no matrix form"
    return weigh(counts, features)


def cross_fit(counts: Matrix, dataset: Dataset, config: TrainingConfig, folds: Iterable[Fold]) -> Unseen:
    """Every prompt as seen by a step one that was fitted without it."""
    logits = np.zeros((len(dataset), len(dataset.categories)))
    similarities = np.zeros(len(dataset))
    for fold in folds:
        step_one = fit_step_one(counts[fold.seen], dataset.rows(fold.seen), config)
        vectors = vectorised(counts[fold.left_out], dataset.rows(fold.left_out), step_one.features)
        logits[fold.left_out] = batch_logits(step_one.classifier.model, vectors)
        similarities[fold.left_out] = _similarities(vectors, step_one.gate)
    return Unseen(logits, similarities)


def prompt_folds(dataset: Dataset, count: int, seed: int) -> list[Fold]:
    """Folds by prompt, each with its share of every category; near-duplicates are left out together."""
    _, first, copy_of = np.unique(dataset.copies, return_index=True, return_inverse=True)
    labels = dataset.labels[first]
    most = int(np.bincount(labels + 1).max())
    splitter = StratifiedKFold(min(count, most), shuffle=True, random_state=seed)
    folds = []
    for _, chosen in splitter.split(labels, labels):
        left_out = np.isin(copy_of, chosen)
        folds.append(Fold(np.flatnonzero(~left_out), np.flatnonzero(left_out)))
    return folds


def group_folds(dataset: Dataset, count: int) -> list[Fold] | None:
    """Folds that leave whole groups out, and near-duplicates of theirs in other groups are not seen either.

    None where there are fewer than three groups to judge by.
    """
    names = np.unique(dataset.groups)
    if len(names) < 3:
        return None
    splitter = GroupKFold(min(count, len(names)))
    folds = []
    for seen, left_out in splitter.split(dataset.labels, groups=dataset.groups):
        copied = np.isin(dataset.copies[seen], dataset.copies[left_out])
        folds.append(Fold(seen[~copied], left_out))
    return folds


def calibrated(step_one: StepOne, calibration: Calibration, threshold: float) -> StepOne:
    """The same step one with the calibration and threshold that unseen prompts asked for."""
    return replace(
        step_one,
        classifier=replace(step_one.classifier, calibration=calibration),
        gate=replace(step_one.gate, threshold=threshold),
    )


def _choose(counts: Matrix, dataset: Dataset, config: TrainingConfig) -> Vectoriser:
    chosen = config.features
    ngrams = None
    if chosen.ngrams:
        ngrams = choose_features(counts, chosen.bucket_bits, chosen.min_prompts, chosen.max_columns)
    if ngrams is None or chosen.kind != "hashed-ngrams":
        return EmbeddedFeatures(ngrams, embedding_matrix(dataset).shape[1])
    return ngrams


def _fit_classifier(vectors: Matrix, dataset: Dataset, config: TrainingConfig) -> Classifier:
    if (dataset.labels < 0).all():
        raise DatasetError(f"no training prompt has a {config.data.label!r}")

    def fit(rows: Matrix, labels: Ints) -> CategoryModel:
        return fit_model(rows, labels, len(dataset.categories), config.classifier, config.seed)

    confidence = config.classifier.self_training_confidence
    return Classifier(self_trained(fit, vectors, dataset.labels, confidence), Temperature())


def _fit_gate(vectors: Matrix, features: Vectoriser, config: TrainingConfig) -> Gate | EmbeddedGate:
    """Prototypes drawn from the prompts; lets everything in. Embeddings, where there are any, judge alone."""
    drawn = np.random.default_rng(config.seed).permutation(vectors.shape[0])[: config.gate.prototypes]
    prototypes = vectors[np.sort(drawn)]
    if isinstance(features, EmbeddedFeatures):
        embeddings = of_length_one(prototypes[:, features.first_dense :].toarray())
        return EmbeddedGate(embeddings, features.first_dense, config.gate.neighbours, NO_THRESHOLD)
    return _filed_by_column(prototypes, config)


def _filed_by_column(prototypes: Matrix, config: TrainingConfig) -> Gate:
    lengths = np.where((lengths := _lengths(prototypes)) > 0.0, lengths, 1.0)
    counts = np.bincount(prototypes.indices, minlength=prototypes.shape[1])
    telling = sp.diags_array(_telling(counts, len(lengths)).astype(np.float32))
    by_column = sp.csc_array(sp.diags_array((1.0 / lengths).astype(np.float32)) @ prototypes @ telling)
    by_column.eliminate_zeros()
    by_column.sort_indices()
    if by_column.nnz == 0:
        raise DatasetError(f"{prototypes.shape[0]} training prompts have no n-gram in common to learn from")
    return Gate(
        starts=by_column.indptr.astype(np.int64),
        rows=by_column.indices.astype(np.int32),
        weights=by_column.data.astype(np.float32),
        prototypes=len(lengths),
        neighbours=config.gate.neighbours,
        threshold=NO_THRESHOLD,
    )


def _telling(counts: Ints, prototypes: int) -> npt.NDArray[np.bool_]:
    """[columns]: the rarest ones, as many as a prompt can look up in the time a decision has.

    A column that n prototypes have turns up in n of `prototypes` prompts and then costs n look-ups.
    """
    order = np.argsort(counts, kind="stable")
    spent = np.cumsum(counts[order].astype(np.float64) ** 2) / prototypes
    telling = np.zeros(len(counts), dtype=bool)
    telling[order[spent <= LOOK_UPS_PER_PROMPT]] = True
    return telling


def _similarities(vectors: Matrix, gate: Gate | EmbeddedGate) -> Vector:
    """The gate's `similarity` of many prompts at once."""
    if isinstance(gate, EmbeddedGate):
        dense = vectors[:, gate.first_dense :]
        return _nearest(dense, sp.csr_array(gate.embeddings.T), gate.neighbours)
    shape = (gate.prototypes, vectors.shape[1])
    prototypes = sp.csc_array((gate.weights, gate.rows, gate.starts), shape=shape).T
    lengths = np.where((lengths := _lengths(vectors)) > 0.0, lengths, 1.0)
    return np.asarray(_nearest(vectors, sp.csr_array(prototypes), gate.neighbours) / lengths)


def _nearest(vectors: Matrix, prototypes: Matrix, neighbours: int) -> Vector:
    batches = range(0, vectors.shape[0], BATCH)
    parts = [nearest_mean((vectors[at : at + BATCH] @ prototypes).toarray(), neighbours) for at in batches]
    return np.concatenate(parts)


def _lengths(vectors: Matrix) -> Vector:
    return np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1), dtype=np.float64)).ravel()
