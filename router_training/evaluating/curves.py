"""The router's curve of score against mean cost, drawn by turning its multiplier, and its summary numbers. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from router_training.evaluating import metrics
from router_training.evaluating.gains import Judged
from router_training.step_two.pricing import choices, least_step
from router_training.step_two.problem import SLACK

Vector = npt.NDArray[np.float64]

ROUNDING = 1e-9  # of a score: experts this close do not differ
DIAL_SETTINGS = 60  # multipliers tried
THRESHOLDS = (0.5, 0.8)  # of RouteLLM's CPT


def curve_keys(judged: Judged, expected: Vector) -> dict[str, Any]:
    """RouterBench's `aiq` and its distance from the zero router's, RouteLLM's `apgr` and `cpt` (null unless there are
    two experts, the dearer of them the better), and the corners of the `curve`; `expected` [n, experts]."""
    costs = judged.active_params_b
    chosen = [choices(expected, costs, multiplier) for multiplier in _dial(costs)]
    spent = np.array([judged.mean_active_params_b(row) for row in chosen])
    scores = np.array([metrics.mean(judged.taken(row), judged.weights) for row in chosen])
    own = metrics.upper_hull(spent, scores)
    low, high = float(costs.min()), float(costs.max())
    aiq = metrics.aiq(own, low, high)
    corners = zip(own.costs.tolist(), own.scores.tolist(), strict=True)
    return {
        "aiq": aiq,
        "delta_aiq": aiq - metrics.aiq(judged.hull, low, high),
        **_of_two(judged, expected),
        "curve": [{"mean_active_params_b": cost, "score": score} for cost, score in corners],
    }


def _of_two(judged: Judged, expected: Vector) -> dict[str, Any]:
    cheap, dear = int(judged.active_params_b.argmin()), int(judged.active_params_b.argmax())
    if expected.shape[1] != 2 or cheap == dear or judged.expert_means[dear] <= judged.expert_means[cheap] + ROUNDING:
        return {"apgr": None, "cpt": None}
    advantage = np.clip(expected[:, dear], -1.0, 1.0) - np.clip(expected[:, cheap], -1.0, 1.0)
    recovered = metrics.gap_recovered(advantage, judged.outcomes[:, cheap], judged.outcomes[:, dear], judged.weights)
    return {"apgr": recovered.mean, "cpt": {f"{100 * x:g}": recovered.share_for(x) for x in THRESHOLDS}}


def _dial(costs: Vector) -> Vector:
    """Multipliers from none to one that leaves only the cheapest expert."""
    if np.ptp(costs) <= SLACK * costs.max():
        return np.zeros(1)
    largest = 1.01 / least_step(costs)
    return np.concatenate(([0.0], np.geomspace(largest * 1e-5, largest, DIAL_SETTINGS)))
