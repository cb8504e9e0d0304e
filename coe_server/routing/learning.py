"""What ratings of drawn experts say: differences between experts within each category, with draws for exploring. Pure.

A rating is modelled as what was expected, plus a part common to all experts of its category, plus the expert's own
part, which is one of all categories and one of this category:

    score - expected = mean + category[c] + expert[e] + cell[c, e] + noise

All parts are normal. The spread of `expert` and `cell` is fitted by marginal likelihood (empirical Bayes; Gelman and
others, "Bayesian Data Analysis", 3rd edition, 2013, chapter 5), so that a few ratings of one category move little and
ratings of all categories move an expert everywhere. The part common to all experts is no reason to choose one of them
and does not reach the table. Experts were drawn with probabilities that depend on the past and the category alone, so
the likelihood needs no weights (Rubin, "Inference and missing data", 1976). `intervals` use the probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LARGEST_STEP = 0.05  # of a score, in one step
SHARE_OF_ONE_KEY = 0.1  # of a cell's ratings, at most
DRAWS = 512
COMMON_SPREAD, CATEGORY_SPREAD = 1.0, 0.15
EXPERT_SPREADS = (0.03, 0.06, 0.12)
CELL_SPREADS = (0.0, 0.01, 0.02, 0.04, 0.07, 0.12)
LEAST_VARIANCE, USUAL_VARIANCE = 0.02, 0.2  # of one rating; the second before there are ratings


@dataclass(frozen=True, slots=True)
class Ratings:
    """n ratings in order of time: `categories` and drawn `experts` by number, `scores` and what was `expected`."""

    categories: Ints
    experts: Ints
    scores: Vector
    expected: Vector


@dataclass(frozen=True, slots=True)
class Posterior:
    """Differences between experts, by category: their `means` [categories, experts], each row with mean 0, and joint
    `draws` [draws, categories, experts]."""

    means: Vector
    draws: Vector


def learned(ratings: Ratings, categories: int, experts: int, seed: int = 0) -> Posterior:
    """The posterior; without ratings the prior."""
    shape = (categories, experts)
    counts, sums = np.zeros(shape), np.zeros(shape)
    residuals = ratings.scores - ratings.expected
    np.add.at(counts, (ratings.categories, ratings.experts), 1.0)
    np.add.at(sums, (ratings.categories, ratings.experts), residuals)
    seen = np.flatnonzero(counts.ravel())
    signal = _same_expert(shape), np.eye(categories * experts)
    if not len(seen):
        expert, cell = EXPERT_SPREADS[-1], CELL_SPREADS[-2]
        return _summary(np.zeros(categories * experts), expert**2 * signal[0] + cell**2 * signal[1], shape, seed)
    means = sums.ravel()[seen] / counts.ravel()[seen]
    noise = np.diag(_variance(ratings, residuals, counts, sums) / counts.ravel()[seen])
    shared = COMMON_SPREAD**2 + CATEGORY_SPREAD**2 * _same_category(shape)
    off = means - residuals.mean()
    expert, cell = _spreads(off, noise + shared[np.ix_(seen, seen)], [one[np.ix_(seen, seen)] for one in signal])
    prior = expert * signal[0] + cell * signal[1]
    total = (prior + shared)[np.ix_(seen, seen)] + noise
    gain = np.linalg.solve(total, prior[seen]).T
    return _summary(gain @ off, prior - gain @ prior[seen], shape, seed)


def stepped(before: Vector, goal: Vector) -> Vector:
    """The table on the way from `before` to `goal`, no cell by more than a step."""
    return before + np.clip(goal - before, -LARGEST_STEP, LARGEST_STEP)


def admitted(cells: Sequence[object], keys: Sequence[str]) -> npt.NDArray[np.bool_]:
    """[n]: True for the ratings that count, so that no key has more than its share of a cell; the first of each key.

    With fewer than ten keys in a cell each may have as much as the others. Depends on no score.
    """
    kept = np.zeros(len(cells), dtype=np.bool_)
    by_cell: dict[object, dict[str, list[int]]] = {}
    for row, (cell, key) in enumerate(zip(cells, keys, strict=True)):
        by_cell.setdefault(cell, {}).setdefault(key, []).append(row)
    for by_key in by_cell.values():
        most = _most_of_one_key([len(rows) for rows in by_key.values()])
        for rows in by_key.values():
            kept[rows[:most]] = True
    return kept


def _most_of_one_key(counts: Sequence[int]) -> int:
    """The largest number of ratings of one key that is within its share of those that then count."""
    share = max(SHARE_OF_ONE_KEY, 1.0 / len(counts))
    most = max(counts)
    while most > 1 and most > share * sum(min(count, most) for count in counts) + 1e-9:
        most -= 1
    return most


def _same_expert(shape: tuple[int, int]) -> Vector:
    return np.asarray(np.kron(np.ones((shape[0], shape[0])), np.eye(shape[1])), dtype=np.float64)


def _same_category(shape: tuple[int, int]) -> Vector:
    return np.asarray(np.kron(np.eye(shape[0]), np.ones((shape[1], shape[1]))), dtype=np.float64)


def _variance(ratings: Ratings, residuals: Vector, counts: Vector, sums: Vector) -> float:
    """The variance of ratings within their cells."""
    cells = int((counts > 0.0).sum())
    if len(residuals) <= cells:
        return USUAL_VARIANCE
    means = sums / np.maximum(counts, 1.0)
    within = residuals - means[ratings.categories, ratings.experts]
    return max(float(within @ within) / (len(residuals) - cells), LEAST_VARIANCE)


def _spreads(off: Vector, rest: Vector, signal: Sequence[Vector]) -> tuple[float, float]:
    """The variances of experts and of cells: means over a grid, weighted by marginal likelihood."""
    grid = [(expert**2, cell**2) for expert in EXPERT_SPREADS for cell in CELL_SPREADS]
    likelihoods = np.empty(len(grid))
    for place, (expert, cell) in enumerate(grid):
        factor = np.linalg.cholesky(rest + expert * signal[0] + cell * signal[1])
        scaled = np.linalg.solve(factor, off)
        likelihoods[place] = -0.5 * scaled @ scaled - np.log(np.diag(factor)).sum()
    weights = np.exp(likelihoods - likelihoods.max())
    expert, cell = weights @ np.array(grid) / weights.sum()
    return float(expert), float(cell)


def _summary(means: Vector, covariance: Vector, shape: tuple[int, int], seed: int) -> Posterior:
    factor = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance)))
    noise = np.random.default_rng(seed).standard_normal((DRAWS, len(means)))
    draws = (means + noise @ factor.T).reshape(DRAWS, *shape)
    table = means.reshape(shape)
    return Posterior(table - table.mean(axis=1, keepdims=True), draws - draws.mean(axis=2, keepdims=True))
