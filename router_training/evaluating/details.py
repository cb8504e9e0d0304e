"""What a report shows beside the headline: who is taken for whom, how sure is how right, what went wrong. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from router_training.evaluating.gains import Judged
from router_training.evaluating.metrics import CALIBRATION_BINS, mean

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WORST_PROMPTS = 20


def confusion(labels: Ints, predicted: Ints, weights: Vector, categories: int) -> list[list[float]]:
    """[true category][predicted category]: the share of the true category's weight. Prompts without a label are left
    out; a category without prompts has zeros."""
    known = labels >= 0
    table = np.zeros((categories, categories))
    np.add.at(table, (labels[known], predicted[known]), weights[known])
    total = table.sum(axis=1, keepdims=True)
    shares: list[list[float]] = np.divide(table, total, out=np.zeros_like(table), where=total > 0).tolist()
    return shares


def reliability(confidences: Vector, hits: Vector, weights: Vector) -> list[dict[str, float]]:
    """Mean confidence and hit rate of bins of equal mass (by count), least sure first; `share` of the weight."""
    order = np.argsort(confidences, kind="stable")
    bins = np.array_split(order, max(min(CALIBRATION_BINS, len(order)), 1))
    return [
        {
            "confidence": mean(confidences[rows], weights[rows]),
            "accuracy": mean(hits[rows], weights[rows]),
            "share": float(weights[rows].sum() / weights.sum()),
        }
        for rows in bins
        if weights[rows].sum() > 0.0
    ]


def worst_prompts(
    judged: Judged, chosen: Ints, expected: Vector, probabilities: Vector, categories: Sequence[str]
) -> list[dict[str, Any]]:
    """Where the router was wrong and had promised most: the chosen expert scored least against what was expected.

    Only prompts that another expert did better. The text is not here.
    """
    rows = np.arange(len(chosen))
    taken, best = judged.taken(chosen), judged.outcomes.max(axis=1)
    broken = np.where(best > taken, expected[rows, chosen] - taken, -np.inf)
    worst = [int(at) for at in np.argsort(-broken, kind="stable")[:WORST_PROMPTS] if np.isfinite(broken[at])]
    dataset = judged.dataset
    return [
        {
            "prompt_id": dataset.prompt_ids[at],
            "category": dataset.categories[dataset.labels[at]] if dataset.labels[at] >= 0 else None,
            "predicted": categories[int(probabilities[at].argmax())],
            "expert": dataset.experts[chosen[at]],
            "score": float(taken[at]),
            "expected_score": float(expected[at, chosen[at]]),
            "better_expert": dataset.experts[int(judged.outcomes[at].argmax())],
            "better_score": float(best[at]),
        }
        for at in worst
    ]
