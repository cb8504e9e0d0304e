"""Multinomial logistic regression on few examples, with predictions for left-out examples. numpy only.

With few examples the Gram matrix is small, so the weights are fitted as combinations of the examples (Schoelkopf,
Herbrich and Smola, "A generalized representer theorem", 2001) by gradient descent with Nesterov's acceleration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import softmax

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

INVERSE_REGULARISATION = 10.0  # training's default
MOST_STEPS = 400
CLOSE_ENOUGH = 1e-5  # largest entry of the gradient at which the fit ends
MOST_FOLDS = 10
TEMPERATURES = np.geomspace(0.05, 5.0, 40)


def fitted_duals(gram: Vector, labels: Ints, classes: int) -> Vector:
    """[n, classes]: coefficients of the examples, from their inner products `gram` [n, n] and `labels` [n]."""
    wanted = np.eye(classes)[labels]
    largest = float(np.abs(gram).sum(axis=1).max(initial=0.0))  # an upper bound on the eigenvalues
    step = 1.0 / (1.0 + 0.5 * INVERSE_REGULARISATION * largest)
    duals = np.zeros((len(labels), classes))
    ahead, momentum = duals, 1.0
    for _ in range(MOST_STEPS):
        gradient = INVERSE_REGULARISATION * (softmax(gram @ ahead) - wanted) + ahead
        if np.abs(gradient).max(initial=0.0) < CLOSE_ENOUGH:
            break
        following = ahead - step * gradient
        grown = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum * momentum))
        ahead, duals, momentum = following + (momentum - 1.0) / grown * (following - duals), following, grown
    return duals


def folds_of(labels: Ints) -> Ints:
    """[n]: the fold of each example, stratified by route."""
    folds = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        folds[rows] = np.arange(len(rows)) % MOST_FOLDS
    return folds


def left_out_logits(gram: Vector, labels: Ints, classes: int) -> Vector:
    """[n, classes]: cross-validated logits of each example."""
    logits = np.zeros((len(labels), classes))
    folds = folds_of(labels)
    for fold in np.unique(folds):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(seen):
            duals = fitted_duals(gram[np.ix_(seen, seen)], labels[seen], classes)
            logits[unseen] = gram[np.ix_(unseen, seen)] @ duals
    return logits


def fitted_temperature(logits: Vector, labels: Ints) -> float:
    """The temperature with the highest likelihood of the left-out examples; 1 without examples or with one class."""
    if logits.shape[1] < 2 or len(labels) < 2:
        return 1.0
    rows = np.arange(len(labels))
    losses = [-np.log(np.maximum(softmax(logits / one)[rows, labels], 1e-12)).mean() for one in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def alike(gram: Vector, share: float) -> list[tuple[int, int]]:
    """Pairs of near-duplicate examples: cosine at least `share`."""
    lengths = np.sqrt(np.maximum(np.diag(gram), 1e-12))
    rows, columns = np.nonzero(np.triu(gram / np.outer(lengths, lengths) >= share, k=1))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def counted_pairs(labels: Sequence[int], chosen: Sequence[int]) -> list[tuple[int, int, int]]:
    """(route, predicted route, count) of errors, the most frequent first."""
    pairs: dict[tuple[int, int], int] = {}
    for label, other in zip(labels, chosen, strict=True):
        if label != other:
            pairs[label, other] = pairs.get((label, other), 0) + 1
    return sorted(((a, b, n) for (a, b), n in pairs.items()), key=lambda found: (-found[2], found[:2]))
