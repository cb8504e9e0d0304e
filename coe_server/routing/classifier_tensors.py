"""A classifier as named tensors and back: which arrays each kind has, and in what shapes. Knows nothing of files."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.routing.calibration import Calibration, Isotonic, Sigmoid, Temperature
from coe_server.routing.classifier import CategoryModel, Classifier, LinearModel, NeighbourModel, PerceptronModel
from coe_server.routing.manifest import Manifest

Tensors = dict[str, npt.NDArray[Any]]
Shapes = dict[str, tuple[type[np.generic], tuple[int, ...]]]


def classifier_tensors(classifier: Classifier) -> Tensors:
    """What a file keeps of a classifier."""
    tensors = {**_model_tensors(classifier.model), **_calibration_tensors(classifier.calibration)}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def classifier_from_tensors(tensors: Tensors, manifest: Manifest) -> Classifier:
    """The classifier that these tensors, already found to be in shape, are of."""
    return Classifier(_model(tensors, manifest), _calibration(tensors, manifest))


def classifier_shapes(tensors: Tensors, manifest: Manifest, columns: int) -> Shapes:
    """The tensors that a classifier of the manifest's kind must have; inner sizes are taken from their own tensor."""
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
            return "a prototype is of a category that there is not"
    if manifest.classifier.calibration == "isotonic":
        curves = (tensors["isotonic_logits"], tensors["isotonic_shares"])
        if any(bool((np.diff(curve, axis=1) < 0.0).any()) for curve in curves):
            return "an isotonic curve falls"
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
            return {}  # a temperature stands in the manifest


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
