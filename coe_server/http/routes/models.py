"""`GET /v1/models`: the names that a caller may use as `model`: objectives, experts, and aliases of both."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from coe_server.errors import UnknownModel
from coe_server.http.auth import CALLER
from coe_server.http.options import AUTO
from coe_server.http.serving import Service


def build_models(service: Service) -> APIRouter:
    """`GET /v1/models` and one of them."""
    models = APIRouter()

    def entry(name: str) -> dict[str, Any]:
        owner = "expert" if name in service.engine_models else "router" if name.partition(":")[0] == AUTO else "alias"
        return {"id": name, "object": "model", "created": service.started, "owned_by": owner}

    def names(request: Request) -> tuple[str, ...]:
        return service.reach(request.scope.get(CALLER)).models

    @models.get("/v1/models")
    async def every_model(request: Request) -> dict[str, Any]:
        """Every name that the caller may put under `model`: objectives of the router, experts, and aliases of both."""
        return {"object": "list", "data": [entry(name) for name in names(request)]}

    @models.get("/v1/models/{name:path}")
    async def one_model(name: str, request: Request) -> dict[str, Any]:
        """One of them; 404 if there is none of that name."""
        if name not in names(request):
            raise UnknownModel(f"there is no model '{name}'; there are {', '.join(names(request))}", "model")
        return entry(name)

    return models
