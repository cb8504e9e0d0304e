"""Step one, fitted: features, calibrated classifier and gate prototypes, and what they say of unseen prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from warnings import catch_warnings, filterwarnings

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold, StratifiedKFold

from coe_server.routing.classifier import Calibration, CategoryModel, Classifier, Temperature
from coe_server.routing.features import Vectoriser
from coe_server.routing.gate import EmbeddedGate, Gate, NgramGate
from router_training.config import TrainingConfig
from router_training.data.dataset import Dataset
from router_training.step_one.basis import Basis
from router_training.step_one.gram import Gram
from router_training.step_one.models import batch_logits, fit_model
from router_training.step_one.prototypes import fitted_gate, gate_similarities
from router_training.step_one.semi_supervised import self_trained

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
    gate: Gate | NgramGate | EmbeddedGate


@dataclass(frozen=True, slots=True)
class Unseen:
    """What step one says of prompts it was not fitted on: `logits` [n, categories], `similarities` [n]."""

    logits: Vector
    similarities: Vector


def fit_step_one(basis: Basis, dataset: Dataset, config: TrainingConfig) -> StepOne:
    """Classifier (not calibrated) and gate (open) from these prompts; what the prompts of a fold have no n-gram for is
    far from all of them."""
    gate = fitted_gate(basis.gram.vectors, basis.features, config)
    return StepOne(basis.features, _fit_classifier(basis, dataset, config), gate)


def cross_fit(basis: Basis, dataset: Dataset, config: TrainingConfig, folds: Iterable[Fold]) -> Unseen:
    """Every prompt as seen by a step one that was fitted without it."""
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
        # of categories with fewer prompts than folds `coe-train check` tells, by name
        filterwarnings("ignore", message="The least populated class")
        parts = list(splitter.split(labels, labels))
    for _, chosen in parts:
        left_out = np.isin(copy_of, chosen)
        folds.append(Fold(np.flatnonzero(~left_out), np.flatnonzero(left_out)))
    return folds


def group_folds(dataset: Dataset, count: int) -> list[Fold] | None:
    """Folds that leave whole groups out, and near-duplicates of theirs in other groups are not seen either, unless
    there is hardly anything else: then the group is not foreign to the others.

    None where there are fewer than three groups to judge by.
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
    """The same step one with the calibration and threshold that unseen prompts asked for."""
    return replace(
        step_one,
        classifier=replace(step_one.classifier, calibration=calibration),
        gate=replace(step_one.gate, threshold=threshold),
    )


def _fit_classifier(basis: Basis, dataset: Dataset, config: TrainingConfig) -> Classifier:
    """Of prompts without a single label, which a fold may be where few have one: it tells no categories apart."""

    def fit(rows: Gram, labels: Ints) -> CategoryModel:
        return fit_model(rows, labels, len(dataset.categories), config.classifier, config.seed)

    confidence = config.classifier.self_training_confidence
    return Classifier(self_trained(fit, basis.gram, dataset.labels, confidence), Temperature())
