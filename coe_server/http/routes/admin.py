"""The operator's endpoints: experts, events, and an atomic reload of artifact, configuration and keys."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from coe_server.cache.status import ExpertStatus
from coe_server.cache.tiers import Tier
from coe_server.cluster import operations
from coe_server.engines.engine import Download, HasLog
from coe_server.errors import CoeError, ReloadRefused, RequestError
from coe_server.events import EventLog
from coe_server.http.auth import Guard
from coe_server.http.routes.logs import SHOWN_LINES, Lines, downloads, log_of
from coe_server.http.routes.nodes import expert_row
from coe_server.http.serving import Service, Serving
from coe_server.routing.embeddings import Embedder
from coe_server.system.process import give_back_free_memory


def build_admin(service: Service, reloader: Reloader) -> APIRouter:
    """The routes under `/admin`."""
    admin, cache = APIRouter(prefix="/admin"), service.cache
    admin.routes.extend([*_build_moves(service).routes, *_build_engines(service).routes])

    @admin.get("/experts")
    async def experts() -> list[dict[str, Any]]:
        """Each expert: residency, bytes held, leases and queued requests; bytes of an unfinished download."""
        return list(_rows(service, await downloads(service)))

    @admin.get("/events")
    async def events(last_event_id: Annotated[int, Header(ge=0)] = 0) -> StreamingResponse:
        """Every move, switch, decision and failure as server-sent events; `Last-Event-ID` resumes."""
        return StreamingResponse(_event_stream(cache.events, last_event_id), media_type="text/event-stream")

    @admin.post("/reload")
    async def reload() -> dict[str, Any]:
        """Load the artifact, the configuration and the keys from disk; 409 if any of them is wrong."""
        return await reloader.reload()

    return admin


def _build_moves(service: Service) -> APIRouter:
    """Load, unload, pin and unpin an expert: here, or on a node."""
    moves, cache = APIRouter(prefix="/admin/experts"), service.cache

    @moves.post("/{name}/load")
    async def load(name: str, node: str | None = None) -> dict[str, Any]:
        """Load an expert onto the device, in turn like a request. Responds when it is loaded. `node` (query parameter):
        the node that does it, default the best one."""
        if (there := await _on_a_node(service, name, "load", node)) is not None:
            return there
        await cache.controls.load(name)
        return _one(service, name)

    @moves.post("/{name}/unload")
    async def unload(name: str, node: str | None = None) -> dict[str, Any]:
        """Evict an idle expert to disk; 409 if it is in use, requested or pinned."""
        if (there := await _on_a_node(service, name, "unload", node)) is not None:
            return there
        cache.controls.unload(name)
        return _one(service, name)

    @moves.post("/{name}/pin")
    async def pin(name: str, tier: Tier = Tier.DEVICE, node: str | None = None) -> dict[str, Any]:
        """Keep an expert at `tier` (query parameter, default device) or above. It is moved there when no request waits,
        and idle experts are evicted for it. 409 if some expert could then never be loaded."""
        if (there := await _on_a_node(service, name, f"pin?tier={tier}", node)) is not None:
            return there
        cache.controls.pin(name, tier)
        return _one(service, name)

    @moves.post("/{name}/unpin")
    async def unpin(name: str, node: str | None = None) -> dict[str, Any]:
        """Remove an expert's pin."""
        return await pin(name, Tier.DISK, node)

    return moves


def _build_engines(service: Service) -> APIRouter:
    """Restart an expert's engine and read its log: here, or on a node."""
    engines = APIRouter(prefix="/admin/experts")

    @engines.post("/{name}/restart")
    async def restart(name: str, node: str | None = None) -> dict[str, Any]:
        """Stop an expert's engine after its answers in progress and start it again; requests that come meanwhile wait.
        Responds when it is loaded; 409 if it is remote or shares the engine of another expert."""
        if (there := await _on_a_node(service, name, "restart", node)) is not None:
            return there
        await service.cache.controls.restart(name)
        return _one(service, name)

    @engines.get("/{name}/log")
    async def log(name: str, lines: Lines = SHOWN_LINES, node: str | None = None) -> dict[str, Any]:
        """The last `lines` lines of the log of an expert's engine, of at most 64 KiB. Keys and prompts are left out
        where they can be told."""
        if service.nodes is not None and service.is_on_nodes(name):
            return await operations.log(service.nodes, name, lines, node)
        _refuse_node(name, node)
        return await log_of(service, name, lines)

    return engines


async def _on_a_node(service: Service, name: str, action: str, node: str | None) -> dict[str, Any] | None:
    """Have a node do it, if nodes run the expert; None if this server does."""
    if service.nodes is None or not service.is_on_nodes(name):
        _refuse_node(name, node)
        return None
    moved_at = await operations.move(service.nodes, name, action, node)
    return _one(service, name) | {"node": moved_at}


def _refuse_node(name: str, node: str | None) -> None:
    if node is not None:
        raise RequestError(f"expert '{name}' is not on a node; leave out `node`", "node")


def _one(service: Service, name: str) -> dict[str, Any]:
    return next(row for row in _rows(service, {}) if row["name"] == name)


def _rows(service: Service, coming: Mapping[str, Download]) -> Iterator[dict[str, Any]]:
    """Experts with an engine, then those that share one: where their base is, and nothing of what it holds."""
    rows = {
        status.name: expert_row(service.nodes, status.name)
        if service.nodes is not None and service.is_on_nodes(status.name)
        else _expert_json(status, service, coming.get(status.name))
        for status in service.cache.status()
    }
    yield from rows.values()
    for name, base in service.cache.slots.bases.items():
        shared = {"bytes": {"device": 0, "host": 0}, "cards": [], "leases": 0, "queued": 0, "pin": None}
        own = {"name": name, "base": base, "last_move": None, "context_tokens": service.context_tokens(name)}
        yield rows[base] | own | shared


async def _event_stream(events: EventLog, last_seq: int) -> AsyncIterator[str]:
    yield ": coe events\n\n"
    async for event in events.after(last_seq):
        yield f"id: {event.seq}\nevent: {event.kind}\ndata: {json.dumps(event.as_json())}\n\n"


def _expert_json(status: ExpertStatus, service: Service, coming: Download | None) -> dict[str, Any]:
    move = status.last_move
    return {
        "name": status.name,
        "base": None,
        "state": status.state,
        "residency": status.residency,
        "bytes": {"device": status.held.device, "host": status.held.host},
        "cards": [{"index": card, "bytes": size} for card, size in enumerate(status.held.cards) if size],
        "leases": status.leases,
        "max_concurrency": status.max_concurrency,
        "queued": status.queued,
        "context_tokens": service.context_tokens(status.name),
        "pin": None if status.pin == "disk" or status.residency == "remote" else status.pin,
        "last_move": move
        and {"from": move.source, "to": move.target, "seconds": round(move.seconds, 4), "bytes": move.size_bytes},
        "failure": status.failure,
        "download": coming and {"bytes": coming.done, "of": coming.of},
        "has_log": isinstance(service.cache.slots[status.name].engine, HasLog),
    }


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fresh:
    """The new state, built and checked before it replaces the current one."""

    serving: Serving
    guard: Guard
    log_prompts: bool
    changed: tuple[str, ...]  # keys of the configuration
    experts: Mapping[str, Sequence[str]] = field(default_factory=dict)  # what happens to which, by kind of change
    take_over: Callable[[], None] = lambda: None  # lets experts come and go; raises CoeError, then nothing has changed


class Reloader:
    """`build` reads and checks everything in a thread; the result then replaces the current state at once.

    Requests that were routed before keep their router.
    """

    def __init__(self, service: Service, build: Callable[[Serving], Fresh]) -> None:
        self._service = service
        self._build = build
        self._one_at_a_time = asyncio.Lock()
        self._retired: list[Embedder] = []  # a request may still use one
        self._tasks: set[asyncio.Task[None]] = set()

    async def reload(self) -> dict[str, Any]:
        """Load the files on disk. Raises ReloadRefused with the reason; then nothing has changed."""
        try:
            return await self._take_over()
        finally:
            give_back_free_memory()  # of what was replaced or rejected

    async def _take_over(self) -> dict[str, Any]:
        async with self._one_at_a_time:
            serving = self._service.serving
            try:
                fresh = await asyncio.to_thread(self._build, serving)
                fresh.take_over()
            except CoeError as error:
                logger.error("nothing was reloaded: %s", error)
                if isinstance(error, ReloadRefused):
                    raise
                raise ReloadRefused(f"nothing was reloaded: {error}") from error
            if serving.embedder is not None and fresh.serving.embedder is not serving.embedder:
                self._retired.append(serving.embedder)
            self._service.serving = fresh.serving
            api_keys = fresh.guard.keyring.since(self._service.guard.keyring)
            self._service.guard = fresh.guard
            self._service.log_prompts = fresh.log_prompts
            if self._service.learner is not None:
                self._service.learner.look_soon()
        version = fresh.serving.router.version
        keys = (f"{word} {', '.join(names)}" for word, names in api_keys.items() if names)
        logger.info(
            "reloaded: router %s; configuration: %s; API keys: %s",
            *(version, ", ".join(fresh.changed) or "as before", "; ".join(keys) or "as before"),
        )
        experts = {kind: list(names) for kind, names in fresh.experts.items()}
        return {"router_version": version, "changed": list(fresh.changed), "experts": experts, "api_keys": api_keys}

    def begin(self) -> None:
        """Start a reload for a signal handler; the log has the result."""
        task = asyncio.get_running_loop().create_task(self._reload_quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End reloads that a signal began, and close every embedder."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for embedder in (*self._retired, self._service.serving.embedder):
            if embedder is not None:
                await embedder.close()

    async def _reload_quietly(self) -> None:
        try:
            await self.reload()
        except ReloadRefused:
            return  # `reload` has logged why
