"""Converts classifier, features and gate to named tensors and back, with the shapes of each kind. No I/O."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import (
    Calibration,
    CategoryModel,
    Classifier,
    Isotonic,
    LinearModel,
    NeighbourModel,
    PerceptronModel,
    Sigmoid,
    Temperature,
)
from coe_server.routing.embeddings import EmbeddedFeatures, StaticEmbeddings
from coe_server.routing.features import Features, Vectoriser
from coe_server.routing.gate import EmbeddedGate, Gate, NgramGate, Similarity, postings
from coe_server.routing.manifest import Manifest

Tensors = dict[str, npt.NDArray[Any]]
Shapes = dict[str, tuple[type[np.generic], tuple[int, ...]]]


def classifier_tensors(classifier: Classifier) -> Tensors:
    """The tensors of a classifier."""
    tensors = {**_model_tensors(classifier.model), **_calibration_tensors(classifier.calibration)}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def classifier_from_tensors(tensors: Tensors, manifest: Manifest) -> Classifier:
    """The classifier of these tensors, whose shapes have been checked."""
    return Classifier(_model(tensors, manifest), _calibration(tensors, manifest))


def classifier_shapes(tensors: Tensors, manifest: Manifest, columns: int) -> Shapes:
    """The required tensors of a classifier of the manifest's kind; inner sizes are taken from the tensors."""
    categories = len(manifest.categories)
    match manifest.classifier.kind:
        case "knn":
            reduced, prototypes = _size(tensors, "projection", 1), _size(tensors, "prototypes", 0)
            shapes: Shapes = {
                "projection": (np.float32, (columns, reduced)),
                "prototypes": (np.float32, (prototypes, reduced)),
                "prototype_labels": (np.int32, (prototypes,)),
            }
        case "mlp":
            reduced, hidden = _size(tensors, "projection", 1), _size(tensors, "hidden", 1)
            shapes = {
                "projection": (np.float32, (columns, reduced)),
                "hidden": (np.float32, (reduced, hidden)),
                "hidden_intercepts": (np.float32, (hidden,)),
                "coefficients": (np.float32, (hidden, categories)),
                "intercepts": (np.float32, (categories,)),
            }
        case _:
            shapes = {
                "coefficients": (np.float32, (columns, categories)),
                "intercepts": (np.float32, (categories,)),
            }
    return {**shapes, **_calibration_shapes(tensors, manifest)}


def classifier_fault(tensors: Tensors, manifest: Manifest) -> str | None:
    """What is wrong with tensors whose shapes are right, or None."""
    if manifest.classifier.kind == "knn":
        labels = tensors["prototype_labels"]
        if labels.min() < 0 or labels.max() >= len(manifest.categories):
            return "a prototype has an unknown category"
    if manifest.classifier.calibration == "isotonic":
        curves = (tensors["isotonic_logits"], tensors["isotonic_shares"])
        if any(bool((np.diff(curve, axis=1) < 0.0).any()) for curve in curves):
            return "an isotonic curve decreases"
    return None


def _model_tensors(model: CategoryModel) -> Tensors:
    match model:
        case LinearModel():
            return {"coefficients": model.coefficients, "intercepts": model.intercepts}
        case NeighbourModel():
            return {
                "projection": model.projection,
                "prototypes": model.prototypes,
                "prototype_labels": model.labels,
            }
        case PerceptronModel():
            return {
                "projection": model.projection,
                "hidden": model.hidden,
                "hidden_intercepts": model.hidden_intercepts,
                "coefficients": model.coefficients,
                "intercepts": model.intercepts,
            }
        case _:
            raise AssertionError(f"{type(model).__name__} has no form on disk")


def _model(tensors: Tensors, manifest: Manifest) -> CategoryModel:
    match manifest.classifier.kind:
        case "knn":
            return NeighbourModel(
                tensors["projection"],
                tensors["prototypes"],
                tensors["prototype_labels"],
                manifest.classifier.neighbours,
                len(manifest.categories),
            )
        case "mlp":
            names = ("projection", "hidden", "hidden_intercepts", "coefficients", "intercepts")
            return PerceptronModel(*(tensors[name] for name in names))
        case _:
            return LinearModel(tensors["coefficients"], tensors["intercepts"])


def _calibration_tensors(calibration: Calibration) -> Tensors:
    match calibration:
        case Sigmoid():
            return {"sigmoid_slopes": calibration.slopes, "sigmoid_offsets": calibration.offsets}
        case Isotonic():
            return {"isotonic_logits": calibration.logits, "isotonic_shares": calibration.shares}
        case _:
            return {}  # a temperature is stored in the manifest


def _calibration(tensors: Tensors, manifest: Manifest) -> Calibration:
    match manifest.classifier.calibration:
        case "sigmoid":
            return Sigmoid(tensors["sigmoid_slopes"], tensors["sigmoid_offsets"])
        case "isotonic":
            return Isotonic(tensors["isotonic_logits"], tensors["isotonic_shares"])
        case _:
            return Temperature(manifest.temperature)


def _calibration_shapes(tensors: Tensors, manifest: Manifest) -> Shapes:
    categories = len(manifest.categories)
    match manifest.classifier.calibration:
        case "sigmoid":
            return {
                "sigmoid_slopes": (np.float64, (categories,)),
                "sigmoid_offsets": (np.float64, (categories,)),
            }
        case "isotonic":
            points = _size(tensors, "isotonic_logits", 1)
            return {
                "isotonic_logits": (np.float64, (categories, points)),
                "isotonic_shares": (np.float64, (categories, points)),
            }
        case _:
            return {}


def _size(tensors: Tensors, name: str, axis: int) -> int:
    tensor = tensors.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else 0


def feature_tensors(features: Vectoriser) -> Tensors:
    """The tensors of features, without a table of static embeddings."""
    ngrams = features.ngrams if isinstance(features, EmbeddedFeatures) else features
    if ngrams is None:
        return {}
    assert isinstance(ngrams, Features), f"{type(ngrams).__name__} has no form on disk"
    return {"kept": ngrams.kept.astype(np.int32), "idf": ngrams.idf}


def table_of(features: Vectoriser) -> StaticEmbeddings | None:
    """The static embeddings among the features, or None."""
    return features.table if isinstance(features, EmbeddedFeatures) else None


def features_from_tensors(tensors: Tensors, manifest: Manifest, table: StaticEmbeddings | None) -> Vectoriser:
    """The features of these tensors, whose shapes have been checked."""
    settings = manifest.features
    ngrams = None
    if settings.ngrams:
        ngrams = Features.of(
            settings.bucket_bits, tensors["kept"].astype(np.int64), tensors["idf"], settings.normalisation
        )
    if ngrams is None or settings.embedded:
        return EmbeddedFeatures(ngrams, settings.dimensions, table, settings.normalisation)
    return ngrams


def column_count(tensors: Tensors, manifest: Manifest) -> int:
    """The length of a feature vector."""
    return (_length(tensors, "kept") if manifest.features.ngrams else 0) + manifest.features.dimensions


def feature_shapes(tensors: Tensors, manifest: Manifest) -> Shapes:
    """The required tensors of features of the manifest's kind."""
    if not manifest.features.ngrams:
        return {}
    columns = _length(tensors, "kept")
    return {"kept": (np.int32, (columns,)), "idf": (np.float32, (columns,))}


def feature_fault(tensors: Tensors, manifest: Manifest) -> str | None:
    """What is wrong with tensors whose shapes are right, or None."""
    if not manifest.features.ngrams:
        return None
    kept = tensors["kept"]
    ascending = bool(np.all(kept[1:] > kept[:-1]))
    if not ascending or kept[0] < 0 or kept[-1] >= 1 << manifest.features.bucket_bits:
        return "tensor 'kept' is not a list of buckets"
    return None


def gate_tensors(gate: Similarity) -> Tensors:
    """The tensors of a gate."""
    match gate:
        case Gate():
            rows, weights = (np.ascontiguousarray(gate.postings[name]) for name in ("row", "weight"))
            return {"posting_starts": gate.starts, "posting_rows": rows, "posting_weights": weights}
        case NgramGate():
            return gate_tensors(gate.ngrams)
        case EmbeddedGate():
            return {"gate_embeddings": gate.embeddings}
        case _:
            raise AssertionError(f"{type(gate).__name__} has no form on disk")


def gate_from_tensors(tensors: Tensors, manifest: Manifest, features: Vectoriser) -> Similarity:
    """The gate of these tensors, whose shapes have been checked."""
    threshold = manifest.thresholds.gate
    if isinstance(features, EmbeddedFeatures) and _compares_embeddings(tensors, manifest):
        return EmbeddedGate(tensors["gate_embeddings"], features.first_dense, manifest.neighbours, threshold)
    gate = Gate(
        starts=tensors["posting_starts"],
        postings=postings(tensors["posting_rows"], tensors["posting_weights"]),
        prototypes=manifest.prototypes,
        neighbours=manifest.neighbours,
        threshold=threshold,
    )
    return NgramGate(gate, features.first_dense, threshold) if isinstance(features, EmbeddedFeatures) else gate


def gate_shapes(tensors: Tensors, manifest: Manifest) -> Shapes:
    """The required tensors of a gate for the manifest's features."""
    if _compares_embeddings(tensors, manifest):
        return {"gate_embeddings": (np.float32, (manifest.prototypes, manifest.features.dimensions))}
    count = _length(tensors, "posting_rows")
    return {
        "posting_starts": (np.int64, (_length(tensors, "kept") + 1,)),
        "posting_rows": (np.int32, (count,)),
        "posting_weights": (np.float32, (count,)),
    }


def gate_fault(tensors: Tensors, manifest: Manifest) -> str | None:
    """What is wrong with tensors whose shapes are right, or None."""
    if _compares_embeddings(tensors, manifest):
        return None
    starts, rows = tensors["posting_starts"], tensors["posting_rows"]
    in_order = starts[0] == 0 and starts[-1] == len(rows) and bool(np.all(starts[1:] >= starts[:-1]))
    if not in_order or rows.min() < 0 or rows.max() >= manifest.prototypes:
        return "the postings point out of range"
    return None


def _compares_embeddings(tensors: Tensors, manifest: Manifest) -> bool:
    """True if the gate compares embeddings; in older artifacts also beside n-grams."""
    settings = manifest.features
    return settings.embedded and (not settings.ngrams or "gate_embeddings" in tensors)


def _length(tensors: Tensors, name: str) -> int:
    tensor = tensors.get(name)
    return len(tensor) if tensor is not None and tensor.ndim > 0 else 0
