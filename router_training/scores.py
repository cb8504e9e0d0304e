"""Score of each expert in each predicted category: weighted means, shrunk where a category has few prompts. Pure."""

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

    A standard error is NaN where fewer than two prompts stand behind a score.
    """

    scores: Vector
    counts: Ints
    standard_errors: Vector
    overall_scores: Vector
    overall_counts: Ints
    overall_errors: Vector


def score_table(
    predicted: Ints, outcomes: Vector, weights: Vector, categories: int, shrinkage_prompts: float
) -> ScoreTable:
    """The table from `predicted` categories [n], `outcomes` [n, experts] (NaN: missing) and `weights` [n].

    A category's mean counts as many prompts as it has, the expert's overall mean as `shrinkage_prompts`.
    Raises DatasetError where an expert has no outcome at all.
    """
    everything = np.zeros(len(predicted), dtype=np.int64)
    overall, counts, errors = (part[0] for part in _means(everything, outcomes, weights, 1))
    if (counts == 0).any():
        raise DatasetError(
            f"expert number {int(np.argmin(counts)) + 1} of the configuration has no outcome to learn from"
        )
    means, category_counts, category_errors = _means(predicted, outcomes, weights, categories)
    trust = np.where(category_counts > 0, category_counts, 0) / np.maximum(category_counts + shrinkage_prompts, 1e-12)
    scores = trust * np.nan_to_num(means) + (1.0 - trust) * overall
    return ScoreTable(np.clip(scores, 0.0, 1.0), category_counts, category_errors, overall, counts, errors)


def _means(predicted: Ints, outcomes: Vector, weights: Vector, categories: int) -> tuple[Vector, Ints, Vector]:
    """Weighted mean, count and standard error by category and expert; NaN where nothing stands behind it."""
    known = ~np.isnan(outcomes)
    filled = np.where(known, outcomes, 0.0)
    share = known * weights[:, np.newaxis]
    members = predicted[np.newaxis, :] == np.arange(categories)[:, np.newaxis]
    indicator = members.astype(np.float64)
    total = indicator @ share
    counts = np.rint(indicator @ (known & (weights > 0.0)[:, np.newaxis])).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = indicator @ (share * filled) / total
        centred = share * (filled - np.nan_to_num(means)[predicted])
        errors = np.sqrt(indicator @ centred**2 * counts / (counts - 1)) / total
    return means, counts, np.where(counts > 1, errors, np.nan)
