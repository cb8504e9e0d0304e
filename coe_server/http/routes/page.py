"""The page's files and its own endpoints: overview, decisions, and quality. Access is checked before (`auth`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.responses import Response

from coe_server.cache.tiers import Bytes
from coe_server.http.routes.nodes import node_rows
from coe_server.http.serving import Service

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

    @page.head("/", include_in_schema=False)
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
        training data, what routed answers cost since the start beside the best single expert; on a front its nodes."""
        used, capacity = _memory(service)
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
            "wait_bound_seconds": service.cache.bounds.seconds(),
            **({} if service.nodes is None else {"nodes": node_rows(service.nodes)}),
            "costs": [
                {"best_single": best, "unit": unit, "spent": spent, "instead": instead}
                for (best, unit), (spent, instead) in service.telemetry.costs.items()
            ],
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


def _memory(service: Service) -> tuple[Bytes, Bytes]:
    """Bytes used and there: of this machine or, on a front without local experts, of all of its nodes together."""
    nodes, ledger = service.nodes, service.cache.ledger
    if nodes is None or any(not slot.expert.on_nodes for slot in service.cache.slots.values()):
        return ledger.used, ledger.capacity
    told = [node.snapshot for node in nodes.known() if node.snapshot is not None]
    used = Bytes(sum(sum(one.used_bytes) for one in told), sum(one.host_used_bytes for one in told))
    return used, Bytes(sum(sum(one.capacity_bytes) for one in told), sum(one.host_capacity_bytes for one in told))


def _file(files: dict[str, bytes], name: str) -> Response:
    if name not in files:
        raise HTTPException(404, "the page has no such file")
    media_type = _TYPES[Path(name).suffix]
    return Response(files[name], media_type=f"{media_type}; charset=utf-8", headers=_HEADERS)
