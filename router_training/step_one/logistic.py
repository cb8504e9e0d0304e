"""Multinomial logistic regression in as many unknowns as there are prompts: scikit-learn's objective, sooner. Pure.

L-BFGS (Liu and Nocedal, 1989) on the dual coordinates A of the coefficients X' A, with inner products as the
coefficients themselves would have: the same path, without a vector as long as the n-grams times the categories.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import softmax
from coe_server.routing.features import Floats
from router_training.step_one.gram import Gram

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

CLOSE = 0.02  # of the gradient's first length is where it stops; unseen prompts notice nothing of the rest
NOTHING = 1e-16  # squared length of a gradient, for each prompt, that is rounding: nothing tells the prompts apart
REMEMBERED = 6  # steps
TURNS = 20  # of the search for the length of a step
STEADY = 0.01  # relative change of that length at which it is found


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
        """The inner product of the coefficients and intercepts that the two stand for."""
        return float(np.vdot(self.duals, other.margins) + self.intercepts @ other.intercepts)

    @property
    def logits(self) -> Vector:
        return np.asarray(self.margins + self.intercepts)


@dataclass(frozen=True, slots=True)
class Step:
    """What was moved, how the gradient changed by it, and the inner product of the two."""

    moved: Direction
    change: Direction
    curvature: float


def fitted_logistic(
    gram: Gram, labels: Ints, inverse_regularisation: float, most_steps: int, close: float = CLOSE
) -> tuple[Floats, Floats]:
    """(coefficients [columns, k], intercepts [k]) for `labels` [n] from 0 to k - 1, each of which occurs.

    The sum of the surprises plus the coefficients' squared length / (2 inverse_regularisation) is least.
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
        """How far to go to where the slope along the line is almost 0; costs no product with the Gram matrix.

        Newton's method, kept between where the slope still fell and where it rose again.
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
    """The gradient turned round and stretched by what the last steps showed of the curvature (two loops)."""
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
