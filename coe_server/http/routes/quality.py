"""Quality against cost, as the page shows it: from the evaluation of the router's artifact.

It has figures only, none of the texts that an evaluation may hold.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coe_server.config.mistakes import Mistake
from coe_server.errors import ArtifactError
from coe_server.routing.manifest import Manifest, Name

ACTIVE = "active_params_b"
_MOST = 10_000  # points of a curve, experts, budgets


class _Part(BaseModel):
    """The shown fields of a part of an evaluation; the others are for the report alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _Best(_Part):
    expert: Name
    score: float


class _Point(_Part):
    score: float
    mean_active_params_b: float


class _Budget(_Point):
    objective: Name
    cost_unit: str = ACTIVE


_Points = Annotated[list[_Point], Field(max_length=_MOST)]


class _Evaluation(_Part):
    n_prompts: Annotated[int, Field(ge=0)]
    best_single: _Best
    router: _Point
    experts: Annotated[dict[Name, float], Field(max_length=_MOST)]
    hull: _Points
    curve: _Points | None = None
    by_budget: Annotated[list[_Budget], Field(max_length=_MOST)]


def quality_of(manifest: Manifest, evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the page shows of an evaluation; `cost` is in billions of active parameters. None without an evaluation, or
    if costs are prices. Raises ArtifactError for an evaluation that lacks what is shown.
    """
    if evaluation is None or evaluation.get("cost_unit", ACTIVE) != ACTIVE:
        return None
    said = _said(evaluation)
    active = {expert.name: expert.active_params_b for expert in manifest.experts}
    return {
        "prompts": said.n_prompts,
        "best_single": said.best_single.model_dump(),
        "router": _point(said.router),
        "experts": [
            {"name": name, "score": score, "cost": active[name]}
            for name, score in said.experts.items()
            if active.get(name) is not None
        ],
        "hull": [_point(one) for one in said.hull],
        "curve": [_point(one) for one in said.curve or []],
        "budgets": [{"name": one.objective, **_point(one)} for one in said.by_budget if one.cost_unit == ACTIVE],
    }


def _said(evaluation: dict[str, Any]) -> _Evaluation:
    try:
        return _Evaluation.model_validate(evaluation)
    except ValidationError as error:
        mistake = Mistake.first(error.errors(include_url=False, include_input=False))
        raise ArtifactError(
            f"router artifact: evaluation.json {mistake.invalid}; `coe-train fit` writes one that is"
        ) from error


def _point(one: _Point) -> dict[str, float]:
    return {"score": one.score, "cost": one.mean_active_params_b}
