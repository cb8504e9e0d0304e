"""What a router is worth against always asking the best single expert: its gain, and its share of the cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.routing.manifest import Manifest
from router_training.data.provenance import SCORED_BY
from router_training.evaluation.gains import Judged, unlimited_gain
from router_training.evaluation.metrics import Bootstrap, mean

Ints = npt.NDArray[np.int64]

UNITS = {"active_params_b": "active parameters", "price_per_million_tokens": "price"}
SAME = 0.995  # a larger share of the cost is not called a saving


def worth(judged: Judged, chosen: Mapping[str, Ints], manifest: Manifest, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """The block of `evaluation.json`: for each objective the gain over the best single expert, and `cost_share`, the
    mean cost divided by that expert's, each with a 95 % interval."""
    rows = []
    for name, experts in chosen.items():
        costs = np.array(manifest.costs(name))
        shares = costs[experts] / costs[judged.best_single]
        low, high = bootstrap.interval(shares[:, np.newaxis], judged.weights, lambda means: float(means[0]))
        rows.append(
            {
                "objective": name,
                "cost_unit": manifest.objectives[name].budget_unit or manifest.cost_unit,
                **unlimited_gain(judged, experts, bootstrap).as_json(),
                "cost_share": mean(shares, judged.weights),
                "cost_share_ci95": [low, high],
            }
        )
    return rows


def worth_sentence(evaluation: dict[str, Any]) -> str | None:
    """The objective that is certainly better than the best single expert at the least cost, in one sentence.

    If none is, the gain of the main objective; of weak scores only that they are. None for an evaluation from
    before this block.
    """
    if (kind := evaluation.get("scored_by")) is not None:
        return SCORED_BY[kind]
    rows = evaluation.get("worth")
    if not rows:
        return None
    better = [row for row in rows if row["gain_ci95"][0] > 0.0]
    main = next((row for row in rows if row["objective"] == evaluation["router"]["objective"]), rows[0])
    best = min(better, key=lambda row: row["cost_share"], default=main)
    verdict = "Better than" if better else "Not certainly better than"
    low, high = (100 * bound for bound in best["gain_ci95"])
    return (
        f"{verdict} the best single expert ({evaluation['best_single']['expert']}){_cost(best)}:"
        f" {100 * best['gain']:+.2f} points ({low:+.2f} to {high:+.2f}), objective {best['objective']}"
    )


def _cost(row: dict[str, Any]) -> str:
    if row["cost_share"] > SAME:
        return ""
    low, high = row["cost_share_ci95"]
    return f" with {row['cost_share']:.0%} ({low:.0%} to {high:.0%}) of its {UNITS[row['cost_unit']]}"
