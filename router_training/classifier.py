"""Step one, fitted: features, calibrated classifier and gate prototypes, and what they say of unseen prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.sparse.linalg import svds
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold

from coe_server.errors import DatasetError
from coe_server.routing.classifier import Classifier, softmax
from coe_server.routing.features import Features
from coe_server.routing.gate import Gate, nearest_mean
from router_training.config import TrainingConfig
from router_training.dataset import Dataset
from router_training.vectors import Matrix, choose_features, weigh

ABSENT_LOGIT = -30.0  # of a category that a fold has no prompt of
PROJECTION_SAMPLE = 4000  # prompts that the main directions are taken from
BATCH = 2048

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

    features: Features
    classifier: Classifier
    gate: Gate


@dataclass(frozen=True, slots=True)
class Unseen:
    """What step one says of prompts it was not fitted on: `logits` [n, categories], `similarities` [n]."""

    logits: Vector
    similarities: Vector


def fit_step_one(counts: Matrix, dataset: Dataset, config: TrainingConfig) -> StepOne:
    """Features, classifier (temperature 1) and gate (open) from these prompts; unlabelled ones shape features only."""
    chosen = config.features
    features = choose_features(counts, chosen.bucket_bits, chosen.min_prompts, chosen.max_columns)
    vectors = weigh(counts, features)
    return StepOne(features, _fit_classifier(vectors, dataset, config), _fit_gate(vectors, config))


def cross_fit(counts: Matrix, dataset: Dataset, config: TrainingConfig, folds: Iterable[Fold]) -> Unseen:
    """Every prompt as seen by a step one that was fitted without it."""
    logits = np.zeros((len(dataset), len(dataset.categories)))
    similarities = np.zeros(len(dataset))
    for fold in folds:
        step_one = fit_step_one(counts[fold.seen], dataset.rows(fold.seen), config)
        vectors = weigh(counts[fold.left_out], step_one.features)
        logits[fold.left_out] = vectors @ step_one.classifier.coefficients + step_one.classifier.intercepts
        similarities[fold.left_out] = _similarities(vectors, step_one.gate)
    return Unseen(logits, similarities)


def prompt_folds(dataset: Dataset, count: int, seed: int) -> list[Fold]:
    """Folds by prompt, each with its share of every category."""
    most = int(np.bincount(dataset.labels + 1).max())
    splitter = StratifiedKFold(min(count, most), shuffle=True, random_state=seed)
    return [Fold(seen, left_out) for seen, left_out in splitter.split(dataset.labels, dataset.labels)]


def group_folds(dataset: Dataset, count: int) -> list[Fold] | None:
    """Folds that leave whole groups out; None where there are fewer than three groups to judge by."""
    names = np.unique(dataset.groups)
    if len(names) < 3:
        return None
    splitter = GroupKFold(min(count, len(names)))
    return [Fold(seen, left_out) for seen, left_out in splitter.split(dataset.labels, groups=dataset.groups)]


def fitted_temperature(logits: Vector, labels: Ints) -> float:
    """The temperature under which the true categories are likeliest; 1 / 20 to 20."""
    rows = np.flatnonzero(labels >= 0)

    def surprise(log_temperature: float) -> float:
        probabilities = softmax(logits[rows] / np.exp(log_temperature))
        return float(-np.log(np.maximum(probabilities[np.arange(len(rows)), labels[rows]], 1e-12)).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=(-3.0, 3.0), method="bounded").x))


def calibrated(step_one: StepOne, temperature: float, threshold: float) -> StepOne:
    """The same step one with the temperature and threshold that unseen prompts asked for."""
    return replace(
        step_one,
        classifier=replace(step_one.classifier, temperature=temperature),
        gate=replace(step_one.gate, threshold=threshold),
    )


def _fit_classifier(vectors: Matrix, dataset: Dataset, config: TrainingConfig) -> Classifier:
    labelled = np.flatnonzero(dataset.labels >= 0)
    present, labels = np.unique(dataset.labels[labelled], return_inverse=True)
    if len(present) == 0:
        raise DatasetError(f"no training prompt has a {config.data.label!r}")
    shape = (vectors.shape[1], len(dataset.categories))
    coefficients = np.zeros(shape, dtype=np.float32)
    intercepts = np.full(shape[1], ABSENT_LOGIT, dtype=np.float32)
    if len(present) == 1:
        intercepts[present] = 0.0
        return Classifier(coefficients, intercepts, 1.0)
    settings = config.classifier
    model = LogisticRegression(
        C=settings.inverse_regularisation, max_iter=settings.max_iterations, tol=1e-3, random_state=config.seed
    )
    model.fit(vectors[labelled], labels)
    # two classes come as one column: the second's advantage over the first
    coefs = model.coef_ if len(present) > 2 else np.vstack([-model.coef_, model.coef_]) / 2
    constants = model.intercept_ if len(present) > 2 else np.array([-1, 1]) * model.intercept_ / 2
    coefficients[:, present] = coefs.T
    intercepts[present] = constants
    return Classifier(coefficients, intercepts, 1.0)


def _fit_gate(vectors: Matrix, config: TrainingConfig) -> Gate:
    """Main directions by truncated SVD (of a sample), prototypes drawn from the prompts; lets everything in."""
    settings = config.gate
    generator = np.random.default_rng(config.seed)
    sample = vectors[_drawn(generator, vectors.shape[0], PROJECTION_SAMPLE)]
    dimensions = min(settings.dimensions, min(sample.shape) - 1)
    if dimensions < 1:
        raise DatasetError(f"{vectors.shape[0]} training prompts with {vectors.shape[1]} n-grams are too few")
    start = generator.normal(size=min(sample.shape))
    _, _, directions = svds(sample, k=dimensions, v0=start, tol=1e-2)
    projection = np.ascontiguousarray(directions.T, dtype=np.float32)
    places = vectors[_drawn(generator, vectors.shape[0], settings.prototypes)] @ projection
    lengths = np.linalg.norm(places, axis=1, keepdims=True)
    prototypes = np.asarray(places / np.where(lengths > 0.0, lengths, 1.0), dtype=np.float32)
    return Gate(projection, prototypes, settings.neighbours, threshold=-1.0)


def _similarities(vectors: Matrix, gate: Gate) -> Vector:
    """`Gate.similarity` of many prompts at once."""
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1))).ravel()
    lengths = np.where(lengths > 0.0, lengths, 1.0)[:, np.newaxis]
    places = np.asarray((vectors @ gate.projection) / lengths, dtype=np.float32)
    batches = range(0, len(places), BATCH)
    parts = [nearest_mean(places[at : at + BATCH] @ gate.prototypes.T, gate.neighbours) for at in batches]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def _drawn(generator: np.random.Generator, available: int, wanted: int) -> Ints:
    return np.sort(generator.permutation(available)[:wanted])
