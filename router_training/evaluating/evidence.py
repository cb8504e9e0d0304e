"""What each objective gains on prompts that neither step one nor step two was fitted on, over all folds. Pure.

For every fold step two is fitted again without it: scores, gate and multiplier from the other folds alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.routing.manifest import Manifest
from router_training.config import TrainingConfig
from router_training.data.dataset import Dataset
from router_training.drafting.objectives import grounds_of, solve_objectives
from router_training.drafting.rehearsal import Rehearsal, refitted
from router_training.drafting.settling import telling
from router_training.evaluating.gains import Gain, Judged, budget_gain, unlimited_gain
from router_training.evaluating.metrics import Bootstrap
from router_training.step_two.solving import decided

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One objective: its gain (over the best single expert, under a budget over the zero router) and its mean cost."""

    gain: Gain
    mean_cost: float

    def as_json(self) -> dict[str, Any]:
        return {"mean_active_params_b": self.mean_cost, **self.gain.as_json()}


def cross_validated(rehearsal: Rehearsal, dataset: Dataset, config: TrainingConfig) -> dict[str, Ints]:
    """objective -> expert [n] of each prompt, chosen by those that had not seen it, if what they saw shows every
    expert."""
    chosen = {name: np.zeros(len(dataset), dtype=np.int64) for name in config.objectives}
    for fold in rehearsal.folds:
        seen = telling(dataset, fold.seen)
        again = refitted(rehearsal, dataset, seen, config)
        entries = solve_objectives(dataset.rows(seen), again.rows(seen), config)
        grounds = grounds_of(dataset.rows(fold.left_out), again.rows(fold.left_out), config)
        for name, entry in entries.items():
            costs = np.array(config.costs(entry.budget_unit or config.cost_unit))
            chosen[name][fold.left_out] = decided(entry, grounds, costs)
    return chosen


def weigh_evidence(
    chosen: Mapping[str, Ints], dataset: Dataset, manifest: Manifest, bootstrap: Bootstrap
) -> dict[str, Evidence]:
    """objective -> what these choices gained on the prompts that have an outcome from every expert."""
    complete = np.flatnonzero(dataset.has_all_outcomes & (dataset.weights > 0.0))
    judged = Judged(dataset.rows(complete), np.array(manifest.costs()))
    found = {}
    for name, experts in chosen.items():
        priced = replace(judged, active_params_b=np.array(manifest.costs(name)))
        rival = unlimited_gain if manifest.objectives[name].budget is None else budget_gain
        gain = rival(priced, experts[complete], bootstrap)
        found[name] = Evidence(gain, priced.mean_active_params_b(experts[complete]))
    return found
