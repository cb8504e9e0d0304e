"""The price of cost under each objective of an artifact: as stored, or held at its budget by what was answered.

Knows nothing of how an expert is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from coe_server.routing import budget
from coe_server.routing.artifact import Artifact
from coe_server.routing.budget import Meter
from coe_server.routing.decision import BudgetReading, RoutingDecision


class Meters:
    """One meter for each objective with a budget; none where `window` is 0."""

    def __init__(self, artifact: Artifact, window: int) -> None:
        manifest = artifact.manifest
        self._stored = {
            name: BudgetReading(entry.budget, None, entry.multiplier) for name, entry in manifest.objectives.items()
        }
        self._costs = {
            name: dict(zip(artifact.expert_names, manifest.costs(name), strict=True)) for name in manifest.objectives
        }
        self._meters = _built(artifact, window) if window > 0 else {}

    def price(self, objective: str) -> BudgetReading:
        """What the next decision under this objective works with."""
        stored = self._stored[objective]
        meter = self._meters.get(objective)
        if meter is None:
            return stored
        balance = meter.balance
        return BudgetReading(stored.target, balance.mean, balance.multiplier)

    @contextmanager
    def spending(self, decision: RoutingDecision) -> Iterator[Callable[[], None]]:
        """Only what the router chose counts, not an expert that was asked for by name."""
        meter = self._meters.get(decision.objective)
        if meter is None or decision.reason == "requested":
            yield lambda: None
        else:
            with meter.spending(self._costs[decision.objective][decision.expert]) as answered:
                yield answered


def _built(artifact: Artifact, window: int) -> dict[str, Meter]:
    manifest = artifact.manifest
    rows = [*(manifest.score[category] for category in manifest.categories), manifest.overall]
    scores = np.array([[row[expert.name].score for expert in manifest.experts] for row in rows])
    front = [budget.Point(point.score, point.mean_active_params_b) for point in manifest.front]
    return {
        name: Meter(
            budget.goal(
                target=entry.budget,
                start=entry.multiplier,
                window=window,
                table=budget.Table(
                    scores, np.array(manifest.costs(name)), front if entry.budget_unit == manifest.cost_unit else []
                ),
            )
        )
        for name, entry in manifest.objectives.items()
        if entry.budget is not None
    }
