"""Builds every object and joins them. The only file that does; `assembly` has the parts."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI

from coe_server.assembly.experts import build_experts, costs_file, model_name, platform_of
from coe_server.assembly.journals import build_journal
from coe_server.assembly.keyring import build_guard
from coe_server.assembly.memory import build_capacity, refuse_what_never_fits
from coe_server.assembly.routers import build_router, build_serving
from coe_server.assembly.tracing import build_tracing
from coe_server.cache.costs import write_costs
from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.scheduler import Limits
from coe_server.cache.tiers import Tier
from coe_server.changes import live_changes
from coe_server.config import (
    ServerConfig,
    VllmExpert,
)
from coe_server.engines.machine import copy_bytes_per_second
from coe_server.events import EventLog
from coe_server.http.api import Lifespan, build_api
from coe_server.http.chronicle import Chronicle
from coe_server.http.door.listener import Listener
from coe_server.http.operator.reloading import Fresh, Reloader
from coe_server.http.service import Service, Serving
from coe_server.telemetry import Telemetry

logger = logging.getLogger(__name__)


def build_server(config: ServerConfig, reread: Callable[[], ServerConfig] | None = None) -> Listener:
    """The whole server for `config`, ready to run. Raises ConfigError or ArtifactError before anything starts.

    `reread` gives the configuration as it is on disk now, for a reload; without it the artifact alone is reloaded.
    """
    router = build_router(config)
    experts = build_experts(config)
    capacity = build_capacity(config)
    refuse_what_never_fits(experts, capacity)
    telemetry, events = Telemetry(), EventLog()
    events.tell(telemetry.saw)
    cache = ExpertCache(
        experts,
        capacity,
        Limits(**config.scheduling.model_dump()),
        events,
        one_move_at_a_time=platform_of(config) == "cuda",
    )
    serving = build_serving(config, router)
    journal = build_journal(config)
    service = Service(
        serving=serving,
        cache=cache,
        chronicle=Chronicle(cache.events, journal),
        engine_models={expert.name: model_name(expert) for expert in config.experts},
        guard=build_guard(config),
        started=int(time.time()),
        telemetry=telemetry,
        log_prompts=config.log.prompts,
        tracing=build_tracing(config),
    )
    reloader = Reloader(service, _Rebuild(config, reread or (lambda: config)))
    wakes_by_copying = platform_of(config) == "cpu" and any(isinstance(one, VllmExpert) for one in config.experts)
    lifespan = _lifespan(service, costs_file(config), reloader, telemetry if wakes_by_copying else None)

    def before_stop() -> None:
        cache.stop_admitting()
        cache.events.close()

    return Listener(
        build_api(service, reloader, lifespan),
        config.http.host,
        config.http.port,
        before_stop,
        config.http.shutdown_seconds,
    )


class _Rebuild:
    """Builds anew what may change while the server runs, from what is on disk now; see `Reloader`."""

    def __init__(self, running: ServerConfig, reread: Callable[[], ServerConfig]) -> None:
        self._running = running
        self._reread = reread

    def __call__(self, serving: Serving) -> Fresh:
        """Raises ReloadRefused, ConfigError or ArtifactError; then everything stays as it is."""
        wanted = self._reread()
        changed = live_changes(self._running, wanted)
        before = None if any(key.startswith("router.embeddings") for key in changed) else serving
        built = build_serving(wanted, build_router(wanted), before)  # all that is on disk, also what does not decide
        decides_alike = not any(key.startswith(("router", "experts.")) for key in changed)
        if decides_alike and built.router.version == serving.router.version:
            built = replace(built, router=serving.router, traffic=serving.traffic)  # they know what has been so far
        fresh = Fresh(built, build_guard(wanted), wanted.log.prompts, changed)
        self._running = wanted
        return fresh


async def _keep_costs(cache: ExpertCache, file: Path) -> None:
    """Write the measured costs down after each move."""
    moved = asyncio.Event()
    cache.events.tell(lambda event: moved.set() if event.kind == "move" else None)
    while True:
        await moved.wait()
        moved.clear()
        try:
            await asyncio.to_thread(write_costs, file, cache.measured_costs())
        except OSError as error:
            logger.warning("measured costs are not kept: %s (state_directory)", error)
            return


def _lifespan(service: Service, costs_file: Path, reloader: Reloader, told_of_copying: Telemetry | None) -> Lifespan:
    cache, journal = service.cache, service.chronicle.journal

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        conductor = asyncio.create_task(cache.run())
        conductor.add_done_callback(_stop_without_conductor)
        keeper = asyncio.create_task(_keep_costs(cache, costs_file))
        tasks = [conductor, keeper]
        if told_of_copying is not None:
            tasks.append(asyncio.create_task(_measure_copying(told_of_copying)))
        with suppress(ValueError, RuntimeError, NotImplementedError):  # signals reach the main thread alone
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.begin)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await reloader.close()
            await asyncio.to_thread(service.incoming.close)
            await asyncio.to_thread(service.tracing.close)
            if journal is not None:
                await asyncio.to_thread(journal.stop)

    return lifespan


async def _measure_copying(telemetry: Telemetry) -> None:
    """What a wake on a CPU can reach at best; requests need not wait for the figure."""
    telemetry.measured_bandwidth(Tier.HOST, Tier.DEVICE, await asyncio.to_thread(copy_bytes_per_second))


def _stop_without_conductor(conductor: asyncio.Task[None]) -> None:
    """A server whose conductor failed can move nothing any more: it stops, and says why."""
    if not conductor.cancelled() and conductor.exception() is not None:
        logger.critical("the conductor failed; the server stops", exc_info=conductor.exception())
        signal.raise_signal(signal.SIGTERM)
