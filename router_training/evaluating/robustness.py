"""Do slightly changed prompts go to another expert, and does it cost score? One row for each way to change them. Pure
but for the draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from router_training.data.dataset import Dataset
from router_training.evaluating import metrics
from router_training.evaluating.perturbations import PERTURBATIONS, perturbed

Ints = npt.NDArray[np.int64]


def robustness(route: Callable[[Dataset], Ints], sample: Dataset, generator: np.random.Generator) -> dict[str, Any]:
    """The `robustness` and `flip_rate` of an evaluation; `route` gives the column of the expert of each prompt.

    `flips`: share of prompts that change hands; `harmful_flips`: that change hands to an expert who recorded a lower
    score; `score_change`: what all flips together do to the mean score.
    """
    before = route(sample)
    rows = np.arange(len(before))
    report = {}
    for name, perturb in PERTURBATIONS.items():
        after = route(perturbed(sample, perturb, generator))
        change: npt.NDArray[np.float64] = sample.scores[rows, after] - sample.scores[rows, before]
        report[name] = {
            "flips": metrics.mean((after != before).astype(np.float64), sample.weights),
            "harmful_flips": metrics.mean((change < 0.0).astype(np.float64), sample.weights),
            "score_change": metrics.mean(change, sample.weights),
        }
    flip_rate = float(np.mean([row["flips"] for row in report.values()]))
    return {"flip_rate": flip_rate, "robustness": {"n_prompts": len(sample), **report}}
