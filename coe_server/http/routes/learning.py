"""What ratings have taught the router, and undoing it: `/admin/learning`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from coe_server.errors import NothingToUndo
from coe_server.http.serving import Service


def build_learning(service: Service) -> APIRouter:
    """The routes under `/admin/learning`."""
    learning = APIRouter(prefix="/admin/learning")

    @learning.get("")
    async def told() -> dict[str, Any] | None:
        """The steps by which ratings moved scores, and the differences between experts; null if nothing is kept."""
        return None if service.learner is None else service.learner.as_json()

    @learning.post("/undo")
    async def undo() -> dict[str, Any]:
        """Undo the last step; its ratings no longer count. 409 if there is none."""
        if service.learner is None:
            raise NothingToUndo("there is no step to undo: decisions are not kept (log.decisions)")
        await service.learner.undo()
        return service.learner.as_json()

    return learning
