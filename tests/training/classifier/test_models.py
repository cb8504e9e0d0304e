from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from safetensors.numpy import load_file, save
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from coe_server.errors import ArtifactError
from coe_server.routing import artifact as artifacts
from coe_server.routing.artifact import Artifact
from coe_server.routing.classifier import Calibration, CategoryModel, Classifier, LinearModel, Temperature
from coe_server.routing.features import SparseVector
from coe_server.routing.gate import Gate, postings
from coe_server.routing.manifest import ClassifierEntry
from router_training.classifier.calibration import Method, fitted_calibration
from router_training.classifier.gram import Gram
from router_training.classifier.models import KINDS, Kind, batch_logits, fit_model, kind_of, main_directions, perceptron
from router_training.config import ClassifierSettings
from tests.routing.small_artifact import BITS, held_out, small_artifact

CATEGORIES = 3
COLUMNS = 40
SETTINGS = ClassifierSettings(neighbours=5, reduced_dimensions=8, hidden_units=6, max_iterations=1000)


def drawn(count: int, seed: int, categories: int = CATEGORIES) -> tuple[sp.csr_array, np.ndarray]:
    """Sparse vectors whose categories overlap, so that probabilities are far from 0 and 1."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % categories
    dense = generator.random((count, COLUMNS)) * (generator.random((count, COLUMNS)) < 0.3)
    for row, label in enumerate(labels):
        dense[row, label * 5 : label * 5 + 5] += generator.random(5) * 0.8
    return sp.csr_array(dense.astype(np.float32)), labels.astype(np.int64)


def sparse_rows(vectors: sp.csr_array) -> list[SparseVector]:
    rows = [vectors[[row]].tocoo() for row in range(vectors.shape[0])]
    return [SparseVector(row.col.astype(np.int64), row.data.astype(np.float32)) for row in rows]


def saved_and_loaded(classifier: Classifier, kind: Kind, method: Method, folder: Path) -> Classifier:
    """The classifier as a server reads it: through the files of an artifact with as many columns."""
    plain = small_artifact()
    changes: dict[str, Any] = {"classifier": ClassifierEntry(kind=kind, calibration=method, neighbours=5)}
    if isinstance(classifier.calibration, Temperature):
        changes["temperature"] = classifier.calibration.temperature
    features = type(plain.features).of(BITS, np.arange(COLUMNS), np.ones(COLUMNS, dtype=np.float32))
    starts = np.concatenate(([0], np.ones(COLUMNS, dtype=np.int64)))
    gate = Gate(starts, postings(np.zeros(1, dtype=np.int32), np.ones(1)), 3, 1, 0.2)
    made = Artifact(small_artifact(**changes).manifest, features, classifier, gate, plain.mapping)
    artifacts.save(made, held_out(), None, folder)
    return artifacts.load(folder).classifier


def by_scikit_learn(
    kind: Kind, train: sp.csr_array, labels: np.ndarray, test: sp.csr_array, model: CategoryModel
) -> np.ndarray:
    """scikit-learn's own probabilities (for the SVM: margins), fitted on the same data."""
    if kind == "logistic":
        return np.asarray(with_ours(LogisticRegression().fit(train, labels), model).predict_proba(test))
    if kind == "svm":
        svm = LinearSVC(C=SETTINGS.inverse_regularisation, max_iter=1000, tol=1e-3, random_state=0)
        return np.asarray(svm.fit(train, labels).decision_function(test))
    inside, outside = np.asarray(train @ model.projection), np.asarray(test @ model.projection)
    if kind == "knn":
        neighbours = KNeighborsClassifier(SETTINGS.neighbours, metric="cosine")
        return np.asarray(neighbours.fit(inside, labels).predict_proba(outside))
    network = perceptron(SETTINGS.hidden_units, len(labels), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(inside, labels)
    return np.asarray(network.predict_proba(outside))


def with_ours(theirs: Any, model: CategoryModel) -> Any:
    """scikit-learn's logistic regression with our coefficients: test_logistic.py compares the two solvers."""
    assert isinstance(model, LinearModel)
    theirs.coef_, theirs.intercept_ = model.coefficients.T.astype(np.float64), model.intercepts.astype(np.float64)
    return theirs


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_and_loaded_classifier_says_what_scikit_learn_says(kind: Kind, tmp_path: Path) -> None:
    train, labels = drawn(150, seed=1)
    test, _ = drawn(60, seed=2)
    model = fit_model(Gram(train), labels, CATEGORIES, SETTINGS.model_copy(update={"kind": kind}), seed=0)
    served = saved_and_loaded(Classifier(model, Temperature()), kind, "temperature", tmp_path / "router")
    expected = by_scikit_learn(kind, train, labels, test, model)
    for row, theirs in zip(sparse_rows(test), expected, strict=True):
        if kind == "svm":  # without calibration it has margins, no probabilities
            projected = row.weights @ served.model.projection[row.columns]
            assert served.model.logits(projected[np.newaxis])[0] == pytest.approx(theirs, abs=1e-5)
        else:
            assert served.probabilities(row) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("method", ["temperature", "sigmoid", "isotonic"])
@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_calibrated_probabilities_are_those_of_scikit_learn(kind: Kind, method: Method, tmp_path: Path) -> None:
    train, labels = drawn(90, seed=1)
    others, truth = drawn(300, seed=2)
    test, _ = drawn(40, seed=3)
    model = fit_model(Gram(train), labels, CATEGORIES, SETTINGS.model_copy(update={"kind": kind}), seed=0)
    estimator: Any = (
        with_ours(LogisticRegression().fit(train, labels), model)
        if kind == "logistic"
        else LinearSVC(C=10.0, max_iter=1000, tol=1e-3, random_state=0).fit(train, labels)
    )
    theirs = CalibratedClassifierCV(FrozenEstimator(estimator), method=method, ensemble=False).fit(others, truth)
    calibration = fitted_calibration(batch_logits(model, others), truth, method)
    served = saved_and_loaded(Classifier(model, calibration), kind, method, tmp_path / "router")
    mine = np.stack([served.probabilities(row) for row in sparse_rows(test)])
    # both minimise the same loss, each with its own solver and tolerance; the isotonic curve is exact
    assert mine == pytest.approx(theirs.predict_proba(test), abs=1e-5 if method == "isotonic" else 2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("present", [(0, 2), (1,)])
def test_a_category_that_no_prompt_has_is_never_expected(kind: Kind, present: tuple[int, ...]) -> None:
    vectors, labels = drawn(60, seed=1)
    kept = np.flatnonzero(np.isin(labels, present))
    model = fit_model(Gram(vectors[kept]), labels[kept], CATEGORIES, SETTINGS.model_copy(update={"kind": kind}), seed=0)
    probabilities = Temperature().probabilities(batch_logits(model, vectors))
    assert probabilities.shape == (60, CATEGORIES)
    assert set(probabilities.argmax(axis=1)) <= set(present)
    absent = [c for c in range(CATEGORIES) if c not in present]
    assert probabilities[:, absent].max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_two_categories_are_told_apart(kind: Kind) -> None:
    vectors, labels = drawn(120, seed=1, categories=2)
    model = fit_model(Gram(vectors), labels, 2, SETTINGS.model_copy(update={"kind": kind}), seed=0)
    assert (batch_logits(model, vectors).argmax(axis=1) == labels).mean() > 0.8


def test_the_main_directions_are_at_right_angles() -> None:
    vectors, _ = drawn(100, seed=1)
    directions = main_directions(vectors, 8, seed=0)
    assert directions.shape == (COLUMNS, 8)
    assert directions.T @ directions == pytest.approx(np.eye(8), abs=1e-5)


@pytest.mark.parametrize("method", ["temperature", "sigmoid", "isotonic"])
def test_calibration_makes_overconfident_logits_honest(method: Method) -> None:
    """Logits three times too large: calibrated on one half, judged on the other by the surprise at the truth."""
    generator = np.random.default_rng(0)
    honest = generator.normal(size=(4000, CATEGORIES)) * 1.5
    weights = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    truth = np.array([generator.choice(CATEGORIES, p=row) for row in weights])
    calibration: Calibration = fitted_calibration(3.0 * honest[:2000], truth[:2000], method)
    rows, known = np.arange(2000), truth[2000:]

    def surprise(probabilities: np.ndarray) -> float:
        return float(-np.log(np.maximum(probabilities[rows, known], 1e-6)).mean())

    before = surprise(Temperature().probabilities(3.0 * honest[2000:]))
    after = surprise(calibration.probabilities(3.0 * honest[2000:]))
    best = surprise(weights[2000:])
    assert after - best < 0.4 * (before - best)


def test_a_category_without_a_prompt_to_calibrate_on_stays_unlikely() -> None:
    logits = np.random.default_rng(0).normal(size=(50, CATEGORIES))
    labels = np.arange(50) % 2
    for method in ("sigmoid", "isotonic"):
        probabilities = fitted_calibration(logits, labels, method).probabilities(logits)
        assert probabilities[:, 2].max() < 0.1
        assert probabilities.sum(axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "method", "broken", "sentence"),
    [
        ("knn", "temperature", {"prototype_labels": lambda t: t + 9}, "has an unknown category"),
        ("knn", "temperature", {"prototypes": lambda t: t[:, :-1]}, "tensor 'prototypes'"),
        ("mlp", "temperature", {"hidden": lambda t: t[:-1]}, "tensor 'hidden'"),
        ("logistic", "sigmoid", {"sigmoid_slopes": lambda t: t[:-1]}, "tensor 'sigmoid_slopes'"),
        ("logistic", "isotonic", {"isotonic_shares": lambda t: t[:, ::-1].copy()}, "an isotonic curve decreases"),
        ("logistic", "isotonic", {"isotonic_logits": lambda t: t * np.nan}, "not numbers"),
    ],
)
def test_a_classifier_out_of_shape_is_refused(
    kind: Kind, method: Method, broken: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    train, labels = drawn(90, seed=1)
    model = fit_model(Gram(train), labels, CATEGORIES, SETTINGS.model_copy(update={"kind": kind}), seed=0)
    calibration = fitted_calibration(batch_logits(model, train), labels, method)
    folder = tmp_path / "router"
    saved_and_loaded(Classifier(model, calibration), kind, method, folder)
    weights, manifest = folder / "weights.safetensors", folder / "manifest.json"
    before = artifacts.artifact_checks.digest(weights.read_bytes())
    tensors = load_file(weights)
    for name, change in broken.items():
        tensors[name] = np.ascontiguousarray(change(tensors[name]))
    weights.write_bytes(save(tensors))
    after = artifacts.artifact_checks.digest(weights.read_bytes())
    manifest.write_text(manifest.read_text().replace(before, after))
    with pytest.raises(ArtifactError, match=sentence) as caught:
        artifacts.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [[1, 1, 1, 1], []])
def test_fewer_than_two_categories_are_a_linear_model_of_any_kind(kind: Kind, labels: list[int]) -> None:
    """It says the one there is of every prompt; of no labels, nothing."""
    vectors, _ = drawn(4, seed=0)
    asked = SETTINGS.model_copy(update={"kind": kind})
    model = fit_model(Gram(vectors[: len(labels)]), np.array(labels, dtype=np.int64), CATEGORIES, asked, seed=0)
    assert kind_of(model, kind) == ("svm" if kind == "svm" else "logistic")
    probabilities = Temperature().probabilities(batch_logits(model, vectors))
    expected = [0.0, 1.0, 0.0] if labels else [1 / 3, 1 / 3, 1 / 3]
    assert probabilities == pytest.approx(np.tile(expected, (4, 1)), abs=1e-9)


@pytest.mark.parametrize("columns", [0, 1])
def test_vectors_of_one_column_have_one_direction(columns: int) -> None:
    vectors = sp.csr_array(np.ones((4, columns), dtype=np.float32))
    directions = main_directions(vectors, 8, seed=0)
    assert directions.shape == (columns, 1)
    assert (vectors @ directions).tolist() == [[float(columns)]] * 4


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_directions_of_vectors_that_do_not_differ_are_numbers(value: float) -> None:
    directions = main_directions(sp.csr_array(np.full((6, 5), value, dtype=np.float32)), 3, seed=0)
    assert directions.shape == (5, 3)
    assert np.isfinite(directions).all()
