"""What an artifact's evaluation says of quality against cost, and nothing of the texts it may hold."""

from __future__ import annotations

from typing import Any

from coe_server.routing.manifest import Manifest

ACTIVE = "active_params_b"


def quality_of(manifest: Manifest, evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """`cost` is in billions of active parameters. None without an evaluation, or where costs are prices."""
    if evaluation is None or evaluation.get("cost_unit", ACTIVE) != ACTIVE:
        return None
    active = {expert.name: expert.active_params_b for expert in manifest.experts}
    return {
        "prompts": evaluation["n_prompts"],
        "best_single": evaluation["best_single"],
        "router": _point(evaluation["router"]),
        "experts": [
            {"name": name, "score": score, "cost": active[name]}
            for name, score in evaluation["experts"].items()
            if active.get(name) is not None
        ],
        "hull": [_point(one) for one in evaluation["hull"]],
        "curve": [_point(one) for one in evaluation.get("curve") or []],
        "budgets": [
            {"name": one["objective"], **_point(one)}
            for one in evaluation["by_budget"]
            if one.get("cost_unit", ACTIVE) == ACTIVE
        ],
    }


def _point(one: dict[str, Any]) -> dict[str, float]:
    return {"score": one["score"], "cost": one["mean_active_params_b"]}
