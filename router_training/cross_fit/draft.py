"""A draft of the artifact: step one fitted on all prompts given, step two on out-of-fold predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coe_server.routing.artifact import Artifact, HeldOut
from coe_server.routing.classifier import Calibration, Corrections, Temperature
from coe_server.routing.manifest import ClassifierEntry, ExpertEntry, Manifest, Thresholds
from router_training import Track
from router_training.assignment.objectives import factors_of, score_entries
from router_training.classifier.calibration import fitted_corrections, residuals
from router_training.classifier.classifier import StepOne, calibrated, fit_step_one, with_named_classifier
from router_training.classifier.features import Basis, basis_of, count_ngrams
from router_training.classifier.models import kind_of
from router_training.classifier.sparse_rows import Matrix
from router_training.config import TrainingConfig
from router_training.cross_fit.out_of_fold import OutOfFold, front_of, predict_out_of_fold, solve_objectives
from router_training.data.dataset import Dataset
from router_training.data.embeddings import feature_entry, served

Ints = npt.NDArray[np.int64]

PREDICTED_PROMPTS = 20_000  # sampled for out-of-fold predictions; step one is fitted on all prompts


@dataclass(frozen=True, slots=True)
class Learned:
    """An artifact before evaluation, and its out-of-fold predictions of the prompts `predicted`.

    These are the given `rows` of the training prompts. `config` names its classifier.
    """

    draft: Artifact
    kept: HeldOut
    predictions: OutOfFold
    predicted: Dataset
    rows: Ints
    config: TrainingConfig


def counted(dataset: Dataset, config: TrainingConfig, track: Track) -> Matrix:
    """The n-grams of every prompt: [prompts, buckets]."""
    return count_ngrams(track(dataset.conversations, "counting n-grams"), config.features.bucket_bits)


def learn(training: Dataset, counts: Matrix, config: TrainingConfig, track: Track) -> Learned:
    """Step one fitted on all training prompts with n-grams `counts`; the rest from out-of-fold predictions."""
    basis = basis_of(counts, training, config.features, track)
    config = with_named_classifier(basis, training, config, track)
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(training))[:PREDICTED_PROMPTS])
    predicted = training.rows(rows)
    few = basis.rows(rows).kept()
    predictions = predict_out_of_fold(few, predicted, config, track)
    whole = few if len(few) == len(basis) else basis
    (step_one,) = [fit_step_one(whole, training, config) for _ in track([None], "fitting on all prompts")]
    step_one = calibrated(step_one, predictions.calibration, predictions.ramp.threshold)
    manifest = _manifest(predicted, predictions, step_one, config)
    mapping = {name: dict(entry.mapping) for name, entry in manifest.objectives.items()}
    corrections = _corrections(few, predicted, predictions)
    features = served(step_one.features, config.features)
    draft = Artifact(manifest, features, step_one.classifier, step_one.gate, mapping, corrections)
    return Learned(draft, _kept(predicted, predictions), predictions, predicted, rows, config)


def grown(learned: Learned, everything: Dataset, basis: Basis, track: Track) -> Artifact:
    """The draft with step one fitted on all prompts, held-out ones included.

    `everything` has the training prompts first; `basis` belongs to it.
    """
    config, predictions = learned.config, learned.predictions
    (fitted,) = [fit_step_one(basis, everything, config) for _ in track([None], "fitting on all prompts and held out")]
    step_one = calibrated(fitted, predictions.calibration, predictions.ramp.threshold)
    manifest = learned.draft.manifest
    kind = kind_of(step_one.classifier.model, config.classifier.named_kind)
    update = {
        "features": feature_entry(step_one.features, config.features),
        "classifier": manifest.classifier.model_copy(update={"kind": kind}),
        "prototypes": step_one.gate.prototypes,
        "prompts": len(everything),
    }
    return replace(
        learned.draft,
        manifest=manifest.model_copy(update=update),
        features=served(step_one.features, config.features),
        classifier=step_one.classifier,
        gate=step_one.gate,
        corrections=_corrections(basis.rows(learned.rows), learned.predicted, predictions),
    )


def _corrections(basis: Basis, training: Dataset, predictions: OutOfFold) -> Corrections | None:
    """Corrections fitted on all training prompts, times the share that helps out of fold."""
    if predictions.correction_share == 0.0:
        return None
    left = residuals(training.scores, predictions.probabilities @ predictions.table.scores)
    fitted = fitted_corrections(basis.gram, left, training.weights)
    return Corrections((predictions.correction_share * fitted.coefficients).astype(np.float32))


def _manifest(training: Dataset, predictions: OutOfFold, step_one: StepOne, config: TrainingConfig) -> Manifest:
    by_category, overall = score_entries(training, predictions.table)
    return Manifest(
        features=feature_entry(step_one.features, config.features),
        categories=list(training.categories),
        classifier=ClassifierEntry(
            kind=kind_of(step_one.classifier.model, config.classifier.named_kind),
            calibration=config.classifier.calibration,
            neighbours=config.classifier.neighbours,
        ),
        temperature=_temperature(predictions.calibration),
        prototypes=step_one.gate.prototypes,
        neighbours=config.gate.neighbours,
        thresholds=Thresholds(
            gate=predictions.ramp.threshold,
            full_trust=predictions.ramp.full_trust,
            min_confidence=config.classifier.min_confidence,
            max_entropy=predictions.max_entropy,
        ),
        mode=config.mapping.mode,
        corrections=predictions.correction_share > 0.0,
        z=config.mapping.z if config.mapping.scores == "lower_bound" else 0.0,
        experts=[
            ExpertEntry(
                name=expert.name,
                active_params_b=expert.active_params_b,
                total_params_b=expert.hosted_params_b,
                price_per_million_tokens=expert.price_per_million_tokens,
                context_tokens=expert.context_tokens,
                vision=expert.sees,
                modalities=expert.modalities,
                tools=expert.tools,
            )
            for expert in config.experts
        ],
        score=by_category,
        overall=overall,
        objectives=solve_objectives(training, predictions, config),
        pins=config.mapping.pins,
        bans=config.mapping.bans,
        front=front_of(training, predictions, config),
        seed=config.seed,
        data_hash=content_hash([*config.data.prompts, *config.data.outcomes]),
        prompts=len(training),
        versions={name: version(name) for name in ("coe-server", "numpy", "scikit-learn", "scipy")},
    )


def _temperature(calibration: Calibration) -> float:
    return calibration.temperature if isinstance(calibration, Temperature) else 1.0


def _kept(training: Dataset, predictions: OutOfFold) -> HeldOut:
    """The out-of-fold predictions, for re-solving the mapping."""
    return HeldOut(
        probabilities=predictions.probabilities.astype(np.float32),
        corrections=predictions.corrections.astype(np.float32),
        trust=predictions.trust.astype(np.float32),
        weights=training.weights.astype(np.float32),
        factors=factors_of(training).astype(np.float32),
    )


def content_hash(paths: Iterable[Path]) -> str:
    """One hash over the bytes of all files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
