"""The page's files and its own endpoints: overview, decisions, and quality against cost from the artifact's evaluation.

Of an evaluation only figures are shown, none of the texts it may hold. Access is checked before (`auth`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from coe_server.config.file import Mistake
from coe_server.errors import ArtifactError
from coe_server.http.serving import Service
from coe_server.routing.manifest import Manifest, Name

_FILES = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def build_page(service: Service) -> APIRouter:
    """The routes of the page over `service`."""
    page = APIRouter()
    files = {path.name: path.read_bytes() for path in _FILES.iterdir() if path.suffix in _TYPES}

    @page.get("/", include_in_schema=False)
    async def index() -> Response:
        """The page."""
        return _file(files, "index.html")

    @page.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        """One file of the page."""
        return _file(files, name)

    @page.get("/admin/overview")
    async def overview() -> dict[str, Any]:
        """Bytes and capacity of the tiers and of each card, the router, and whether traffic still resembles the
        training data."""
        used, capacity = service.cache.ledger.used, service.cache.ledger.capacity
        router, traffic = service.serving.router, service.serving.traffic
        cards = [{"used": used.on(card), "capacity": capacity.on(card)} for card in range(len(capacity.cards))]
        return {
            "tiers": {
                "device": {"used": used.device, "capacity": capacity.device, "cards": cards},
                "host": {"used": used.host, "capacity": capacity.host},
            },
            "now": time.time(),  # events up to here are included
            "router": router.version,
            "objectives": list(router.objectives),
            "decisions_kept": service.journal is not None,
            "wait_bound_seconds": service.cache.waits.bound_seconds(),
            "left_band": traffic and [reading for reading, left in traffic.drift.left_band.items() if left],
        }

    @page.get("/admin/decisions")
    async def decisions(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """The last decisions, newest first, without prompts; none if decisions are not kept."""
        journal = service.journal
        return [] if journal is None else [kept.as_json() for kept in await journal.newest(limit)]

    @page.get("/admin/quality")
    async def quality() -> dict[str, Any] | None:
        """The measured quality of the loaded artifact; null if there is none or it was not measured."""
        return service.serving.quality

    return page


def _file(files: dict[str, bytes], name: str) -> Response:
    if name not in files:
        raise HTTPException(404, "the page has no such file")
    media_type = _TYPES[Path(name).suffix]
    return Response(files[name], media_type=f"{media_type}; charset=utf-8", headers=_HEADERS)


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
