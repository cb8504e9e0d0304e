"""The names that may stand under `model`: the router's objectives and the experts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from coe_server.errors import UnknownModel
from coe_server.http.options import AUTO
from coe_server.http.service import Service


def build_models(service: Service) -> APIRouter:
    """`GET /v1/models` and one of them."""
    models = APIRouter()

    def entry(name: str) -> dict[str, Any]:
        owner = "expert" if name in service.engine_models or name.partition(":")[0] != AUTO else "router"
        return {"id": name, "object": "model", "created": service.started, "owned_by": owner}

    @models.get("/v1/models")
    async def every_model() -> dict[str, Any]:
        """Every name that may stand under `model`: the router's objectives and the experts."""
        return {"object": "list", "data": [entry(name) for name in service.models]}

    @models.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        """One of them; 404 if there is none of that name."""
        if name not in service.models:
            raise UnknownModel(f"there is no model '{name}'; there are {', '.join(service.models)}", "model")
        return entry(name)

    return models
