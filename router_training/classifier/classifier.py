"""Step one, fitted: classifier, gate prototypes, cross-fitting, and the choice of the kind of classifier.

The kind with the lowest cross-validated log loss wins. Prompts without a category take part by self-training
(Yarowsky, 1995); three rounds are enough for the labels to settle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from warnings import catch_warnings, filterwarnings

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.model_selection import GroupKFold, StratifiedKFold

from coe_server.routing.classifier import Calibration, CategoryModel, Classifier, Temperature, softmax
from coe_server.routing.embeddings import EmbeddedFeatures
from coe_server.routing.features import Features, Vectoriser, of_length_one
from coe_server.routing.gate import EmbeddedGate, Gate, NgramGate, nearest_mean, postings
from router_training import Track
from router_training.classifier.calibration import fitted_calibration
from router_training.classifier.features import Basis
from router_training.classifier.gram import Gram
from router_training.classifier.models import KINDS, Kind, batch_logits, fit_model
from router_training.classifier.sparse_rows import Matrix
from router_training.config import TrainingConfig
from router_training.data.dataset import Dataset
from router_training.data.split import Fold

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepOne:
    """What the server needs to classify a prompt."""

    features: Vectoriser
    classifier: Classifier
    gate: Gate | NgramGate | EmbeddedGate


@dataclass(frozen=True, slots=True)
class Unseen:
    """Out-of-fold output of step one: `logits` [n, categories], `similarities` [n]."""

    logits: Vector
    similarities: Vector


def fit_step_one(basis: Basis, dataset: Dataset, config: TrainingConfig) -> StepOne:
    """Uncalibrated classifier and open gate from these prompts.

    A prompt that shares no n-gram with them is far away.
    """
    gate = fitted_gate(basis.gram.vectors, basis.features, config)
    return StepOne(basis.features, _fit_classifier(basis, dataset, config), gate)


def cross_fit(basis: Basis, dataset: Dataset, config: TrainingConfig, folds: Iterable[Fold]) -> Unseen:
    """The out-of-fold reading of every prompt."""
    logits = np.zeros((len(dataset), len(dataset.categories)))
    similarities = np.zeros(len(dataset))
    for fold in folds:
        step_one = fit_step_one(basis.rows(fold.seen), dataset.rows(fold.seen), config)
        vectors = basis.unseen(fold.left_out, fold.seen, config.features.min_prompts)
        logits[fold.left_out] = batch_logits(step_one.classifier.model, vectors)
        similarities[fold.left_out] = gate_similarities(vectors, step_one.gate)
    return Unseen(logits, similarities)


def prompt_folds(dataset: Dataset, count: int, seed: int) -> list[Fold]:
    """Folds by prompt, each with its share of every category; near-duplicates are left out together."""
    _, first, copy_of = np.unique(dataset.copies, return_index=True, return_inverse=True)
    labels = dataset.labels[first]
    most = int(np.bincount(labels + 1).max())
    splitter = StratifiedKFold(min(count, most), shuffle=True, random_state=seed)
    folds = []
    with catch_warnings():
        # `coe-train check` names the categories with fewer prompts than folds
        filterwarnings("ignore", message="The least populated class")
        parts = list(splitter.split(labels, labels))
    for _, chosen in parts:
        left_out = np.isin(copy_of, chosen)
        folds.append(Fold(np.flatnonzero(~left_out), np.flatnonzero(left_out)))
    return folds


def group_folds(dataset: Dataset, count: int) -> list[Fold] | None:
    """Folds that leave whole groups out, and with them their near-duplicates in other groups.

    The near-duplicates stay where hardly anything else would be left to fit on: such a group is not unlike the others.
    None for fewer than three groups.
    """
    names = np.unique(dataset.groups)
    if len(names) < 3:
        return None
    splitter = GroupKFold(min(count, len(names)))
    folds = []
    for seen, left_out in splitter.split(dataset.labels, groups=dataset.groups):
        others = seen[~np.isin(dataset.copies[seen], dataset.copies[left_out])]
        folds.append(Fold(others if len(others) >= 2 else seen, left_out))
    return folds


def calibrated(step_one: StepOne, calibration: Calibration, threshold: float) -> StepOne:
    """The same step one with the calibration and threshold fitted on out-of-fold readings."""
    return replace(
        step_one,
        classifier=replace(step_one.classifier, calibration=calibration),
        gate=replace(step_one.gate, threshold=threshold),
    )


def _fit_classifier(basis: Basis, dataset: Dataset, config: TrainingConfig) -> Classifier:
    """An uncalibrated classifier. Without a single label in these prompts it cannot tell categories apart."""

    def fit(rows: Gram, labels: Ints) -> CategoryModel:
        return fit_model(rows, labels, len(dataset.categories), config.classifier, config.seed)

    confidence = config.classifier.self_training_confidence
    return Classifier(self_trained(fit, basis.gram, dataset.labels, confidence), Temperature())


JUDGED_PROMPTS = 4_000  # labelled prompts, drawn at random; more take longer and do not change the ranking


def with_named_classifier(basis: Basis, dataset: Dataset, config: TrainingConfig, track: Track) -> TrainingConfig:
    """The configuration with `auto` replaced by the kind of lowest cross-validated log loss.

    It is `logistic` if no category has two prompts.
    """
    if config.classifier.kind != "auto":
        return config
    _, first = np.unique(dataset.copies, return_index=True)
    labelled = dataset.labels[first][dataset.labels[first] >= 0]
    if len(labelled) == 0 or np.bincount(labelled).max() < 2:
        return named(config, "logistic")
    surprises = {kind: surprise(basis, dataset, named(config, kind)) for kind in track(KINDS, "comparing classifiers")}
    return named(config, min(surprises, key=lambda kind: surprises[kind]))


def surprise(basis: Basis, dataset: Dataset, config: TrainingConfig) -> float:
    """Mean -log P(true category) over held-out prompts, calibrated as configured."""
    labelled = np.flatnonzero(dataset.labels >= 0)
    drawn = np.sort(np.random.default_rng(config.seed).permutation(labelled)[:JUDGED_PROMPTS])
    sample = dataset.rows(drawn)
    folds = prompt_folds(sample, config.classifier.folds, config.seed)
    logits = cross_fit(basis.rows(drawn), sample, config, folds).logits
    calibration = fitted_calibration(logits, sample.labels, config.classifier.calibration)
    return mean_surprise(calibration.probabilities(logits), sample.labels)


def mean_surprise(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Mean -log of the probability given to the truth; one of 0 counts as a millionth."""
    given = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(given, 1e-6)).mean())


def named(config: TrainingConfig, kind: Kind) -> TrainingConfig:
    """The same configuration with this kind of classifier."""
    return config.model_copy(update={"classifier": config.classifier.model_copy(update={"kind": kind})})


ROUNDS = 3


def self_trained(
    fit: Callable[[Gram, Ints], CategoryModel], gram: Gram, labels: Ints, confidence: float | None
) -> CategoryModel:
    """A model from n prompts and their `labels` [n]; -1 means unlabelled.

    An unlabelled prompt takes its likeliest category if the model's probability for it is at least `confidence`
    (None: never). Its label is predicted again in each round.
    """
    known, unknown = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    model = fit(gram.rows(known), labels[known])
    if confidence is None or len(unknown) == 0 or len(known) == 0:
        return model
    taken = np.full(len(unknown), -1, dtype=np.int64)
    for _ in range(ROUNDS):
        probabilities = softmax(batch_logits(model, gram.vectors[unknown]))
        sure = np.where(probabilities.max(axis=1) >= confidence, probabilities.argmax(axis=1), -1)
        if np.array_equal(sure, taken):
            break
        taken = sure
        rows = np.concatenate((known, unknown[taken >= 0]))
        model = fit(gram.rows(rows), np.concatenate((labels[known], taken[taken >= 0])))
    return model


# The gate's look-ups per prompt on average; they take most of its time. Words tell more than character runs and get
# most of them. Texts without spaces between words, such as Japanese, have runs only.
WORD_LOOK_UPS = 4_000
RUN_LOOK_UPS = 2_000
NO_THRESHOLD = -1.0
BATCH = 1024


def fitted_gate(vectors: Matrix, features: Vectoriser, config: TrainingConfig) -> Gate | NgramGate | EmbeddedGate:
    """An open gate with prototypes drawn from the prompts, on n-grams, or on embeddings if there are no n-grams."""
    drawn = np.random.default_rng(config.seed).permutation(vectors.shape[0])[: config.gate.prototypes]
    prototypes = vectors[np.sort(drawn)]
    if isinstance(features, EmbeddedFeatures) and features.ngrams is not None:
        gate = _filed_by_column(prototypes[:, : features.first_dense], features.ngrams.word_columns, config)
        return NgramGate(gate, features.first_dense, NO_THRESHOLD)
    if isinstance(features, EmbeddedFeatures):
        embeddings = of_length_one(prototypes[:, features.first_dense :].toarray())
        return EmbeddedGate(embeddings, features.first_dense, config.gate.neighbours, NO_THRESHOLD)
    assert isinstance(features, Features), f"{type(features).__name__} has no columns of words and runs"
    return _filed_by_column(prototypes, features.word_columns, config)


def _filed_by_column(prototypes: Matrix, words: int, config: TrainingConfig) -> Gate:
    lengths = np.where((lengths := _lengths(prototypes)) > 0.0, lengths, 1.0)
    counts = np.bincount(prototypes.indices, minlength=prototypes.shape[1])
    rows = np.repeat(np.arange(len(lengths)), np.diff(prototypes.indptr))
    telling = np.concatenate(
        (
            _telling(counts[:words], len(lengths), WORD_LOOK_UPS),
            _telling(counts[words:], len(lengths), RUN_LOOK_UPS),
        )
    )
    kept = np.flatnonzero(telling[prototypes.indices] & (prototypes.data != 0.0))
    weights = prototypes.data[kept] * (1.0 / lengths).astype(np.float32)[rows[kept]]
    by_column = sp.csc_array(sp.coo_array((weights, (rows[kept], prototypes.indices[kept])), shape=prototypes.shape))
    return Gate(
        starts=by_column.indptr.astype(np.int64),
        postings=postings(by_column.indices, by_column.data),
        prototypes=len(lengths),
        neighbours=config.gate.neighbours,
        threshold=NO_THRESHOLD,
    )


def _telling(counts: Ints, prototypes: int, look_ups: int) -> npt.NDArray[np.bool_]:
    """[columns]: the rarest columns that keep a prompt's look-ups within the limit on average.

    A column of n prototypes occurs in n of `prototypes` prompts and then costs n look-ups.
    """
    order = np.argsort(counts, kind="stable")
    spent = np.cumsum(counts[order].astype(np.float64) ** 2) / prototypes
    telling = np.zeros(len(counts), dtype=bool)
    telling[order[spent <= look_ups]] = True
    return telling


def gate_similarities(vectors: Matrix, gate: Gate | NgramGate | EmbeddedGate) -> Vector:
    """The gate's `similarity` of many prompts at once."""
    if isinstance(gate, NgramGate):
        return gate_similarities(vectors[:, : gate.first_dense], gate.ngrams)
    if isinstance(gate, EmbeddedGate):
        dense = vectors[:, gate.first_dense :]
        return _nearest(dense, sp.csr_array(gate.embeddings.T), gate.neighbours)
    shape = (gate.prototypes, vectors.shape[1])
    prototypes = sp.csc_array((gate.postings["weight"], gate.postings["row"], gate.starts), shape=shape).T
    lengths = np.where((lengths := _lengths(vectors)) > 0.0, lengths, 1.0)
    return np.asarray(_nearest(vectors, sp.csr_array(prototypes), gate.neighbours) / lengths)


def _nearest(vectors: Matrix, prototypes: Matrix, neighbours: int) -> Vector:
    batches = range(0, vectors.shape[0], BATCH)
    parts = [nearest_mean((vectors[at : at + BATCH] @ prototypes).toarray(), neighbours) for at in batches]
    return np.concatenate(parts)


def _lengths(vectors: Matrix) -> Vector:
    rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
    return np.sqrt(np.bincount(rows, vectors.data.astype(np.float64) ** 2, vectors.shape[0]))
