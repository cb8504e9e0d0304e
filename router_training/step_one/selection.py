"""Which classifier suits these prompts: each kind in cross-validation, the one least surprised by the truth wins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from router_training.config import TrainingConfig
from router_training.data.dataset import Dataset
from router_training.progress import Track
from router_training.step_one.basis import Basis
from router_training.step_one.calibration import fitted_calibration
from router_training.step_one.classifier import cross_fit, prompt_folds
from router_training.step_one.models import KINDS, Kind

JUDGED_PROMPTS = 4_000  # labelled ones, drawn at random; more would not change the order, only the time


def with_named_classifier(basis: Basis, dataset: Dataset, config: TrainingConfig, track: Track) -> TrainingConfig:
    """The configuration with `auto` replaced by the kind that cross-validation prefers; `logistic` where no category
    has two prompts to tell by."""
    if config.classifier.kind != "auto":
        return config
    _, first = np.unique(dataset.copies, return_index=True)
    labelled = dataset.labels[first][dataset.labels[first] >= 0]
    if len(labelled) == 0 or np.bincount(labelled).max() < 2:
        return named(config, "logistic")
    surprises = {kind: surprise(basis, dataset, named(config, kind)) for kind in track(KINDS, "comparing classifiers")}
    return named(config, min(surprises, key=lambda kind: surprises[kind]))


def surprise(basis: Basis, dataset: Dataset, config: TrainingConfig) -> float:
    """Mean -log P(true category) over prompts not fitted on, calibrated as configured."""
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
