"""A node's endpoints for fronts: `GET /node/events`, which tells what it has, and the moves that a front asks for.

A front may load, unload, restart and pin experts by name, and read the ends of their logs. It cannot describe one: no
command or argument comes over HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from coe_server.cache.slot import Slot, state_of
from coe_server.cache.status import ExpertStatus
from coe_server.cache.tiers import Tier, idle_tier
from coe_server.cluster.snapshot import (
    PROTOCOL,
    CapabilitiesOnNode,
    ExpertOnNode,
    FootprintOnNode,
    NodeSnapshot,
    PinOnNode,
    TierOnNode,
)
from coe_server.errors import first_line
from coe_server.http.routes.logs import SHOWN_LINES, Lines, log_of
from coe_server.http.serving import NodeIdentity, Service
from coe_server.routing.capabilities import UNKNOWN, Capabilities

PULSE_SECONDS = 0.5
_VERSION = version("coe-server")  # read from a file, which takes a millisecond
_LONGEST_SECONDS = 1e9  # stands for infinity, which JSON does not have
_LEAST_SECONDS = 0.05  # between two messages about changes
_PULSE = "event: pulse\ndata: {}\n\n"


def build_node(service: Service, identity: NodeIdentity) -> APIRouter:
    """The routes under `/node`."""
    node, cache = APIRouter(prefix="/node"), service.cache
    news = News()
    cache.events.subscribe(lambda _: news.tell())

    @node.get("/events")
    async def events() -> StreamingResponse:
        """This node's snapshot, then what changes, as server-sent events; a pulse twice a second."""
        return StreamingResponse(messages(service, identity, news), media_type="text/event-stream")

    @node.get("/snapshot")
    async def snapshot() -> dict[str, Any]:
        """The experts of this node with tier, queue and predicted wait, as they are now."""
        return snapshot_of(service, identity, 0).as_json()

    @node.post("/experts/{name}/load")
    async def load(name: str) -> dict[str, Any]:
        """Load an expert onto the device, in turn like a request. Responds when it is loaded."""
        await cache.controls.load(name)
        return {"name": name}

    @node.post("/experts/{name}/unload")
    async def unload(name: str) -> dict[str, Any]:
        """Evict an idle expert to disk; 409 if it is in use, requested or pinned."""
        cache.controls.unload(name)
        return {"name": name}

    @node.post("/experts/{name}/restart")
    async def restart(name: str) -> dict[str, Any]:
        """Stop an expert's engine after its answers in progress and start it again. Responds when it is loaded."""
        await cache.controls.restart(name)
        return {"name": name}

    @node.get("/experts/{name}/log")
    async def log(name: str, lines: Lines = SHOWN_LINES) -> dict[str, Any]:
        """The end of the log of an expert's engine, for the operator of the front."""
        return await log_of(service, name, lines)

    @node.post("/experts/{name}/pin")
    async def pin(name: str, tier: Tier = Tier.DEVICE) -> dict[str, Any]:
        """Keep an expert at `tier` (query parameter, default device; disk: no pin) or above."""
        cache.controls.pin(name, tier)
        news.tell()
        return {"name": name}

    return node


class News:
    """Wakes every stream when something has changed."""

    def __init__(self) -> None:
        self._told = asyncio.Event()

    def tell(self) -> None:
        self._told.set()
        self._told = asyncio.Event()

    async def within(self, seconds: float) -> None:
        """Return at the next news, or after so many seconds without any."""
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            return


async def messages(service: Service, identity: NodeIdentity, news: News) -> AsyncIterator[str]:
    """The stream of one front: ends with a snapshot that says `draining` when the server stops."""
    last = snapshot_of(service, identity, 0)
    yield _message("snapshot", last)
    while not last.draining:
        await news.within(PULSE_SECONDS)
        now = snapshot_of(service, identity, last.sequence + 1)
        changed = {name: one for name, one in now.experts.items() if one != last.experts.get(name)}
        if not changed and replace(now, sequence=last.sequence) == last:
            yield _PULSE
        else:
            some_are_gone = not now.experts.keys() >= last.experts.keys()
            yield _message("snapshot", now) if some_are_gone else _message("changes", replace(now, experts=changed))
            last = now
            await asyncio.sleep(_LEAST_SECONDS)  # many changes at once are one message


def _message(kind: str, snapshot: NodeSnapshot) -> str:
    return f"event: {kind}\nid: {snapshot.sequence}\ndata: {json.dumps(snapshot.as_json())}\n\n"


def snapshot_of(service: Service, identity: NodeIdentity, sequence: int) -> NodeSnapshot:
    """This node as it is now."""
    cache = service.cache
    used, capacity = cache.ledger.used, cache.ledger.capacity
    cards = range(len(capacity.cards))
    return NodeSnapshot(
        node=identity.name,
        protocol=PROTOCOL,
        sequence=sequence,
        experts={one.name: one for one in _experts(service)},
        draining=cache.closing,
        process=identity.process,
        version=_VERSION,
        ready=cache.ready.is_set(),
        capacity_bytes=tuple(capacity.on(card) for card in cards),
        used_bytes=tuple(used.on(card) for card in cards),
        host_capacity_bytes=capacity.host,
        host_used_bytes=used.host,
    )


def _experts(service: Service) -> Iterable[ExpertOnNode]:
    """Every expert that it serves by name: those with an engine, then those that share one."""
    cache = service.cache
    found = {
        status.name: _expert(cache.slots[status.name], status, service)
        for status in cache.status()
        if status.name not in service.leaving
    }
    yield from found.values()
    for name, base in cache.slots.bases.items():
        able = _able(service.capabilities.get(name, UNKNOWN), service.context_tokens(name))
        yield replace(found[base], name=name, base=base, capabilities=able, bytes_device=0, bytes_host=0)


def _expert(slot: Slot, status: ExpertStatus, service: Service) -> ExpertOnNode:
    footprint, name = slot.engine.footprint, status.name
    return ExpertOnNode(
        name=name,
        tier=_TIERS[status.residency],
        state=state_of(slot).value if status.failure is None else "failed",
        seat=slot.seat,
        leases=status.leases,
        queued=status.queued,
        room=max(0, status.max_concurrency - status.leases) if slot.admits and not status.queued else 0,
        max_concurrency=status.max_concurrency,
        wait_seconds=_rounded(status.predicted_wait_seconds),
        switch_seconds=_rounded(slot.costs.move(slot.tier, Tier.DEVICE)),
        start_seconds=0.0 if slot.expert.remote else _rounded(slot.costs.start),
        return_seconds=0.0 if slot.expert.remote else _rounded(slot.costs.move(idle_tier(footprint), Tier.DEVICE)),
        service_seconds=_rounded(slot.costs.service),
        pin=_PINS[status.pin] if not slot.expert.remote else "disk",
        failure=None if status.failure is None else first_line(status.failure),
        returns_seconds=None if status.returns_seconds is None else _rounded(status.returns_seconds),
        may_have_been_paid=slot.expert.remote,
        bytes_device=status.held.device,
        bytes_host=status.held.host,
        footprint=FootprintOnNode(
            footprint.device_awake, footprint.device_asleep, footprint.host, max(1, slot.expert.width)
        ),
        capabilities=_able(service.capabilities.get(name, UNKNOWN), service.context_tokens(name)),
    )


_TIERS: Mapping[str, TierOnNode] = {"device": "device", "host": "host", "disk": "disk", "remote": "remote"}
_PINS: Mapping[Tier, PinOnNode] = {Tier.DEVICE: "device", Tier.HOST: "host", Tier.DISK: "disk"}


def _rounded(seconds: float) -> float:
    """To milliseconds, so that less than that is no change."""
    return round(min(max(0.0, seconds), _LONGEST_SECONDS), 3)


def _able(said: Capabilities, context_tokens: int | None) -> CapabilitiesOnNode:
    return CapabilitiesOnNode(
        context_tokens or said.context_tokens,
        {str(modality): there for modality, there in said.modalities.items()},
        said.tools,
        None if said.endpoints is None else tuple(sorted(said.endpoints)),
    )
