"""The operator's view: where every expert is, and what happens, as it happens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.status import ExpertStatus
from coe_server.cache.tiers import Tier
from coe_server.events import EventLog
from coe_server.http.operator.reloading import Reloader


def build_admin(cache: ExpertCache, reloader: Reloader) -> APIRouter:
    """The routes under `/admin`."""
    admin = APIRouter(prefix="/admin")

    @admin.get("/experts")
    async def experts() -> list[dict[str, Any]]:
        """Where every expert is, what it holds, who uses it and who waits."""
        return [_expert_json(status) for status in cache.status()]

    @admin.get("/events")
    async def events(last_event_id: Annotated[int, Header(ge=0)] = 0) -> StreamingResponse:
        """Every move, switch, decision and failure as server-sent events; `Last-Event-ID` resumes."""
        return StreamingResponse(_event_stream(cache.events, last_event_id), media_type="text/event-stream")

    @admin.post("/experts/{name}/load")
    async def load(name: str) -> dict[str, Any]:
        """Bring an expert to the device; answers when it is there. It waits its turn like a request."""
        await cache.load(name)
        return _one(cache, name)

    @admin.post("/experts/{name}/unload")
    async def unload(name: str) -> dict[str, Any]:
        """Send an idle expert to disk; 409 if it is used, waited for or pinned."""
        cache.unload(name)
        return _one(cache, name)

    @admin.post("/experts/{name}/pin")
    async def pin(name: str, tier: Tier = Tier.DEVICE) -> dict[str, Any]:
        """Never let an expert go below `tier` (query parameter, default device); it comes up when nobody waits, and
        idle ones leave for it. 409 if some expert could then never come to the device."""
        cache.pin(name, tier)
        return _one(cache, name)

    @admin.post("/experts/{name}/unpin")
    async def unpin(name: str) -> dict[str, Any]:
        """Let an expert go to disk again."""
        cache.pin(name, Tier.DISK)
        return _one(cache, name)

    @admin.post("/reload")
    async def reload() -> dict[str, Any]:
        """Take over the artifact, the configuration and the keys as they are on disk now; 409 if any of it is wrong."""
        return await reloader.reload()

    return admin


def _one(cache: ExpertCache, name: str) -> dict[str, Any]:
    return next(_expert_json(status) for status in cache.status() if status.name == name)


async def _event_stream(events: EventLog, last_seq: int) -> AsyncIterator[str]:
    yield ": coe events\n\n"
    async for event in events.after(last_seq):
        yield f"id: {event.seq}\nevent: {event.kind}\ndata: {json.dumps(event.as_json())}\n\n"


def _expert_json(status: ExpertStatus) -> dict[str, Any]:
    move = status.last_move
    return {
        "name": status.name,
        "state": status.state,
        "residency": status.residency,
        "bytes": {"device": status.held.device, "host": status.held.host},
        "leases": status.leases,
        "queued": status.queued,
        "pin": None if status.pin == "disk" or status.residency == "remote" else status.pin,
        "last_move": move
        and {"from": move.source, "to": move.target, "seconds": round(move.seconds, 4), "bytes": move.size_bytes},
        "failure": status.failure,
    }
