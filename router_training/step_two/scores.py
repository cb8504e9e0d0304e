"""Score of each expert in each category: what the out-of-fold probabilities say of the outcomes. Pure.

Soft mixing multiplies probabilities and scores, so the scores are those that make the product fit best (least
squares), drawn towards each expert's overall mean. Averages over the likeliest category would mix once more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.errors import DatasetError

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """`scores`, `counts` and `standard_errors` [categories, experts]; the `overall_...` ones [experts].

    A count is of prompts whose likeliest category it is; a standard error is NaN where it is below two.
    """

    scores: Vector
    counts: Ints
    standard_errors: Vector
    overall_scores: Vector
    overall_counts: Ints
    overall_errors: Vector


def score_table(probabilities: Vector, outcomes: Vector, weights: Vector, shrinkage_prompts: float) -> ScoreTable:
    """From out-of-fold `probabilities` [n, categories], `outcomes` [n, experts] (NaN: missing) and `weights` [n].

    An expert's overall mean counts as `shrinkage_prompts` prompts of every category.
    Raises DatasetError where an expert has no outcome at all.
    """
    known = ~np.isnan(outcomes) & (weights > 0.0)[:, np.newaxis]
    if not known.any(axis=0).all():
        missing = int(np.argmin(known.any(axis=0))) + 1
        raise DatasetError(f"expert number {missing} of the configuration has no outcome to learn from")
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    table = _empty(probabilities.shape[1], outcomes.shape[1])
    for number, rows in enumerate(patterns.T):
        alike = np.flatnonzero(pattern_of == number)  # experts with outcomes for the same prompts
        _fill(table, alike, probabilities[rows], outcomes[np.ix_(rows, alike)], weights[rows], shrinkage_prompts)
    likeliest = np.eye(probabilities.shape[1], dtype=np.int64)[probabilities.argmax(axis=1)]
    table.counts[:] = likeliest.T @ known
    table.standard_errors[table.counts < 2] = np.nan
    return table


def _empty(categories: int, experts: int) -> ScoreTable:
    pairs = (categories, experts)
    return ScoreTable(
        scores=np.zeros(pairs),
        counts=np.zeros(pairs, dtype=np.int64),
        standard_errors=np.zeros(pairs),
        overall_scores=np.zeros(experts),
        overall_counts=np.zeros(experts, dtype=np.int64),
        overall_errors=np.full(experts, np.nan),
    )


def _fill(
    table: ScoreTable, experts: Ints, probabilities: Vector, outcomes: Vector, weights: Vector, shrinkage_prompts: float
) -> None:
    """Ridge regression around the overall mean; errors by the sandwich formula (White, 1980)."""
    shares = (weights / weights.mean())[:, np.newaxis]
    count = len(weights)
    overall = np.clip(shares[:, 0] @ outcomes / count, outcomes.min(axis=0), outcomes.max(axis=0))  # rounding
    # the smallest amount keeps a category that nobody has at the overall mean instead of nowhere
    drawn = max(shrinkage_prompts, 1e-6) * np.eye(probabilities.shape[1])
    influence = shares * probabilities @ np.linalg.inv((shares * probabilities).T @ probabilities + drawn)
    scores = overall + influence.T @ (outcomes - overall)
    table.scores[:, experts] = np.clip(scores, 0.0, 1.0)
    table.standard_errors[:, experts] = np.sqrt((influence**2).T @ (outcomes - probabilities @ scores) ** 2)
    table.overall_scores[experts] = overall
    table.overall_counts[experts] = count
    if count > 1:
        spread = ((shares * (outcomes - overall)) ** 2).sum(axis=0)
        table.overall_errors[experts] = np.sqrt(spread / count / (count - 1))
