"""Fits classifiers and converts them to the plain arrays that are served. Does not depend on prompts.

Multinomial logistic regression has scikit-learn's objective, solved by L-BFGS (Liu and Nocedal, 1989) on the dual
coordinates A of the coefficients X' A: the same path, without vectors as long as n-grams times categories.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC

from coe_server.routing.classifier import CategoryModel, LinearModel, NeighbourModel, PerceptronModel, softmax
from coe_server.routing.features import Floats
from router_training.classifier.gram import Gram
from router_training.config import ClassifierSettings

Matrix = sp.csr_array
Ints = npt.NDArray[np.int64]
Kind = Literal["logistic", "svm", "knn", "mlp"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ABSENT_LOGIT = -30.0  # of a category without a prompt in the fold
REDUCTION_PROMPTS = 20_000  # on which the main directions are computed
LEARNING_RATE = 0.005
WEIGHT_DECAY = 1e-3


def fit_model(gram: Gram, labels: Ints, categories: int, settings: ClassifierSettings, seed: int) -> CategoryModel:
    """A classifier of `settings.kind` (not `auto`) from n prompts and their labels [n], none below 0.

    With fewer than two categories the model is linear and constant: it predicts the one category, or none.
    """
    present, known = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        coefficients = np.zeros((gram.vectors.shape[1], len(present)), dtype=np.float32)
        return _spread(LinearModel(coefficients, np.zeros(len(present), dtype=np.float32)), present, categories)
    if settings.kind == "logistic":
        return _spread(_fit_logistic(gram, known, settings), present, categories)
    fits: dict[str, Callable[[Matrix, Ints, ClassifierSettings, int], CategoryModel]] = {
        "svm": _fit_svm,
        "knn": _fit_neighbours,
        "mlp": _fit_perceptron,
    }
    return _spread(fits[settings.kind](gram.vectors, known, settings, seed), present, categories)


def kind_of(model: CategoryModel, asked: Kind) -> Kind:
    """The manifest's name for a model of this kind."""
    return "logistic" if isinstance(model, LinearModel) and asked != "svm" else asked


def batch_logits(model: CategoryModel, vectors: Matrix) -> npt.NDArray[np.float64]:
    """[n, categories]: the logits of `model` for many vectors [n, columns]."""
    return model.logits(np.asarray(vectors @ model.projection))


def _fit_logistic(gram: Gram, labels: Ints, settings: ClassifierSettings) -> CategoryModel:
    return LinearModel(*fitted_logistic(gram, labels, settings.inverse_regularisation, settings.max_iterations))


def _fit_svm(vectors: Matrix, labels: Ints, settings: ClassifierSettings, seed: int) -> CategoryModel:
    """One margin for each category against all others."""
    model = LinearSVC(C=settings.inverse_regularisation, max_iter=settings.max_iterations, tol=1e-3, random_state=seed)
    # the solver takes 32-bit indices only
    indices, ends = vectors.indices.astype(np.int32), vectors.indptr.astype(np.int32)
    _fit_quietly(model, sp.csr_array((vectors.data, indices, ends), shape=vectors.shape), labels)
    # with two classes there is one column: the margin of the second over the first
    return _linear(model) if len(model.classes_) > 2 else _linear_of_two(model)


def _fit_neighbours(vectors: Matrix, labels: Ints, settings: ClassifierSettings, seed: int) -> CategoryModel:
    projection = main_directions(vectors, settings.reduced_dimensions, seed)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(labels))[: settings.prototypes])
    prototypes = np.asarray(vectors[drawn] @ projection)
    lengths = np.sqrt((prototypes**2).sum(axis=1, keepdims=True))
    prototypes = (prototypes / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32)
    categories = int(labels.max()) + 1
    return NeighbourModel(projection, prototypes, labels[drawn].astype(np.int32), settings.neighbours, categories)


def _fit_perceptron(vectors: Matrix, labels: Ints, settings: ClassifierSettings, seed: int) -> CategoryModel:
    projection = main_directions(vectors, settings.reduced_dimensions, seed)
    model = perceptron(settings.hidden_units, len(labels), seed)
    _fit_quietly(model, np.asarray(vectors @ projection), labels)
    hidden, last = (part.astype(np.float32) for part in model.coefs_)
    hidden_intercepts, intercepts = (part.astype(np.float32) for part in model.intercepts_)
    if last.shape[1] == 1:
        last, intercepts = np.hstack([0.0 * last, last]), np.concatenate([0.0 * intercepts, intercepts])
    return PerceptronModel(projection, hidden, hidden_intercepts, last, intercepts)


def perceptron(hidden_units: int, prompts: int, seed: int) -> MLPClassifier:
    """Not fitted yet. Small data sets get more epochs, so that there are enough steps."""
    passes = int(np.clip(60_000 // prompts, 30, 300))
    return MLPClassifier(
        (hidden_units,), alpha=WEIGHT_DECAY, learning_rate_init=LEARNING_RATE, max_iter=passes, random_state=seed
    )


def main_directions(vectors: Matrix, count: int, seed: int) -> Floats:
    """[columns, at most `count`]: the directions in which the vectors differ most (truncated SVD)."""
    rows, columns = vectors.shape
    if columns < 2:
        return np.eye(columns, 1, dtype=np.float32)
    drawn = np.sort(np.random.default_rng(seed).permutation(rows)[:REDUCTION_PROMPTS])
    svd = TruncatedSVD(max(1, min(count, columns - 1, len(drawn) - 1)), random_state=seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # shares of variance are undefined for copies of one vector
        found = svd.fit(vectors[drawn])
    return np.ascontiguousarray(found.components_.T, dtype=np.float32)


def _fit_quietly(model: Any, vectors: Any, labels: Ints) -> None:
    with warnings.catch_warnings():  # early stopping is intended: more passes overfit the training prompts
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors, labels)


def _linear(model: Any) -> LinearModel:
    return LinearModel(model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32))


def _linear_of_two(model: Any) -> LinearModel:
    signs = np.array([-1.0, 1.0])
    coefficients = (model.coef_.T * signs).astype(np.float32)
    return LinearModel(coefficients, (model.intercept_ * signs).astype(np.float32))


def _spread(model: CategoryModel, present: Ints, categories: int) -> CategoryModel:
    """A model of the categories `present`, extended to all categories."""
    if len(present) == categories:
        return model
    match model:
        case NeighbourModel():
            labels = present[model.labels].astype(np.int32)
            return NeighbourModel(model.projection, model.prototypes, labels, model.neighbours, categories)
        case PerceptronModel():
            last, intercepts = _wide(model.coefficients, model.intercepts, present, categories)
            return PerceptronModel(model.projection, model.hidden, model.hidden_intercepts, last, intercepts)
        case LinearModel():
            return LinearModel(*_wide(model.coefficients, model.intercepts, present, categories))
        case _:
            raise AssertionError(f"{type(model).__name__} cannot be extended to absent categories")


def _wide(coefficients: Floats, intercepts: Floats, present: Ints, categories: int) -> tuple[Floats, Floats]:
    wide = np.zeros((len(coefficients), categories), dtype=np.float32)
    constants = np.full(categories, ABSENT_LOGIT, dtype=np.float32)
    wide[:, present], constants[present] = coefficients, intercepts
    return wide, constants


Vector = npt.NDArray[np.float64]

CLOSE = 0.02  # relative gradient length at which the fit stops; more precision does not change out-of-fold results
NOTHING = 1e-16  # squared gradient length per prompt that is rounding: the prompts are indistinguishable
REMEMBERED = 6  # steps
TURNS = 20  # of the line search
STEADY = 0.01  # relative change of the step length at which the line search ends


@dataclass(frozen=True, slots=True)
class Direction:
    """`duals` [n, k], their `margins` [n, k] (the Gram matrix times them) and `intercepts` [k]."""

    duals: Vector
    margins: Vector
    intercepts: Vector

    def plus(self, share: float, other: Direction) -> Direction:
        return Direction(
            self.duals + share * other.duals,
            self.margins + share * other.margins,
            self.intercepts + share * other.intercepts,
        )

    def scaled(self, factor: float) -> Direction:
        return Direction(factor * self.duals, factor * self.margins, factor * self.intercepts)

    def dot(self, other: Direction) -> float:
        """The inner product of the coefficients and intercepts that the two points represent."""
        return float(np.vdot(self.duals, other.margins) + self.intercepts @ other.intercepts)

    @property
    def logits(self) -> Vector:
        return np.asarray(self.margins + self.intercepts)


@dataclass(frozen=True, slots=True)
class Step:
    """One step, the change of the gradient over it, and the inner product of the two."""

    moved: Direction
    change: Direction
    curvature: float


def fitted_logistic(
    gram: Gram, labels: Ints, inverse_regularisation: float, most_steps: int, close: float = CLOSE
) -> tuple[Floats, Floats]:
    """(coefficients [columns, k], intercepts [k]) for `labels` [n] from 0 to k - 1, each of which occurs.

    They minimise the sum of log losses plus the coefficients' squared length / (2 inverse_regularisation).
    """
    task = Task(gram, np.eye(int(labels.max()) + 1)[labels], 1.0 / inverse_regularisation)
    at = task.start
    gradient = task.gradient(at)
    enough = max(close**2 * gradient.dot(gradient), NOTHING * len(labels))
    steps: deque[Step] = deque(maxlen=REMEMBERED)
    for _ in range(most_steps):
        if gradient.dot(gradient) <= enough:
            break
        towards = downhill(gradient, steps)
        moved = towards.scaled(task.length(at, towards))
        at = at.plus(1.0, moved)
        fresh = task.gradient(at)
        change = fresh.plus(-1.0, gradient)
        curvature = moved.dot(change)
        if curvature > 0.0:
            steps.append(Step(moved, change, curvature))
        gradient = fresh
    return gram.coefficients(at.duals), at.intercepts.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts, their labels as ones in `truth` [n, k], and the `strength` that keeps coefficients small."""

    gram: Gram
    truth: Vector
    strength: float

    @property
    def start(self) -> Direction:
        nothing = np.zeros_like(self.truth)
        return Direction(nothing, nothing, np.zeros(self.truth.shape[1]))

    def gradient(self, at: Direction) -> Direction:
        errors = softmax(at.logits) - self.truth
        return Direction(
            errors + self.strength * at.duals,
            self.gram.times(errors) + self.strength * at.margins,
            errors.sum(axis=0),
        )

    def length(self, at: Direction, towards: Direction) -> float:
        """The step length at which the slope along the line is almost 0; needs no product with the Gram matrix.

        Newton's method, bracketed between points of negative and positive slope.
        """
        here, ahead = at.logits, towards.logits
        slope = self.strength * float(np.vdot(at.duals, towards.margins))
        bend = self.strength * float(np.vdot(towards.duals, towards.margins))
        low, high, length = 0.0, np.inf, 0.0
        for _ in range(TURNS):
            shares = softmax(here + length * ahead)
            means = (shares * ahead).sum(axis=1)
            first = float(((shares - self.truth) * ahead).sum()) + slope + length * bend
            second = float((shares * ahead**2).sum() - (means**2).sum()) + bend
            low, high = (length, high) if first < 0.0 else (low, length)
            next_length = length - first / max(second, 1e-300)
            if not low < next_length < high:
                next_length = (low + high) / 2.0 if np.isfinite(high) else 2.0 * length + 1.0
            if abs(next_length - length) <= STEADY * next_length:
                return next_length
            length = next_length
        return low if low > 0.0 else length


def downhill(gradient: Direction, steps: deque[Step]) -> Direction:
    """The L-BFGS direction: the negative gradient times the inverse Hessian estimate (two-loop recursion)."""
    found = gradient.scaled(-1.0)
    shares = []
    for step in reversed(steps):
        share = step.moved.dot(found) / step.curvature
        shares.append(share)
        found = found.plus(-share, step.change)
    if steps:
        found = found.scaled(steps[-1].curvature / steps[-1].change.dot(steps[-1].change))
    for step, share in zip(steps, reversed(shares), strict=True):
        found = found.plus(share - step.change.dot(found) / step.curvature, step.moved)
    return found
