"""The end of an engine's log and the state of a model's download, as the operator's endpoints tell them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query

from coe_server.engines.engine import Download, HasLog, TellsDownload
from coe_server.errors import RequestError
from coe_server.http.serving import Service

SHOWN_LINES = 200
Lines = Annotated[int, Query(ge=1, le=2000)]
NOTE = (
    "Known keys, and what looks like a key or like a logged prompt, are left out. A program may print others: its log"
    " is for operators only."
)


async def log_of(service: Service, name: str, lines: int) -> dict[str, Any]:
    """The last lines of the log of the engine that answers for `name`. Raises UnknownModel, or RequestError without
    one."""
    slot = service.cache.slots[name]
    if not isinstance(slot.engine, HasLog):
        raise RequestError(f"expert '{name}' has no engine process here, and so no log", "name")
    return {"name": slot.name, "lines": await asyncio.to_thread(slot.engine.log_end, lines), "note": NOTE}


async def downloads(service: Service) -> Mapping[str, Download]:
    """The unfinished downloads of experts that are not loaded, by expert."""
    away = {one.name: one.engine for one in service.cache.slots.values() if not one.up.is_set()}
    asked = {name: engine for name, engine in away.items() if isinstance(engine, TellsDownload)}
    return await asyncio.to_thread(_look, asked) if asked else {}


def _look(engines: Mapping[str, TellsDownload]) -> dict[str, Download]:
    return {name: found for name, engine in engines.items() if (found := engine.download()) is not None}
