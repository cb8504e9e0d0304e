"""Joins all objects of the server; `build` makes the parts. No other file joins them.

OpenTelemetry is an optional extra, imported only if tracing is on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from fastapi import FastAPI

from coe_server.build.capacity import build_capacity, platform_of
from coe_server.build.experts import build_experts, costs_file, footprints_file, keep_footprints, refuse_what_never_fits
from coe_server.build.guard import build_guard
from coe_server.build.nodes import build_identity, build_nodes, learn_from
from coe_server.build.router import build_capabilities, build_router
from coe_server.build.service import build_journal, build_learner, build_presets, build_serving, build_tracing
from coe_server.build.turnover import ServedExperts, build_turnover
from coe_server.cache.costs import write_costs
from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits
from coe_server.cache.tiers import Tier
from coe_server.config.diff import expert_changes, live_changes
from coe_server.config.schema import ServerConfig
from coe_server.engines.memory import copy_bytes_per_second
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.events import EventLog
from coe_server.http.bodies.uploads import Uploads
from coe_server.http.comparer import Comparer
from coe_server.http.routes.admin import Fresh, Reloader
from coe_server.http.server import Lifespan, Listener, build_api
from coe_server.http.serving import Service, Serving
from coe_server.metrics import Telemetry
from coe_server.routing.router import Router

logger = logging.getLogger(__name__)


def build_server(config: ServerConfig, reread: Callable[[], ServerConfig] | None = None) -> Listener:
    """The whole server for `config`, ready to run. Raises ConfigError or ArtifactError before anything starts.

    `reread` reads the configuration again, for a reload. Without it only the artifact is reloaded.
    """
    router = build_router(config)
    nodes = build_nodes(config)
    experts = build_experts(config)
    capacity = build_capacity(config)
    refuse_what_never_fits(experts, capacity)
    telemetry, events = Telemetry(), EventLog()
    events.subscribe(telemetry.saw)
    cache = ExpertCache(
        experts,
        capacity,
        Limits(**config.scheduling.model_dump()),
        events,
        bases=config.bases,
    )
    serving = build_serving(config, router)
    journal = build_journal(config)
    models = config.engine_models
    service = Service(
        serving=serving,
        cache=cache,
        journal=journal,
        engine_models=models,
        presets=build_presets(config),
        guard=build_guard(config),
        started=int(time.time()),
        telemetry=telemetry,
        log_prompts=config.log.prompts,
        tracing=build_tracing(config, models),
        uploads=Uploads(config.state_directory),
        lengths={expert.name: expert.engine for expert in experts if isinstance(expert.engine, VllmEngine)},
        capabilities=build_capabilities(config),
        node=build_identity(config),
        nodes=nodes,
    )
    service.learner = build_learner(config, journal, lambda: service.serving.router)
    service.comparer = None if journal is None else Comparer(service)
    if nodes is not None:
        learn_from(nodes, service, models)
    reloader = Reloader(service, _Rebuild(config, reread or (lambda: config), ServedExperts(service)))
    wakes_by_copying = platform_of(config) == "cpu" and any(one.wakes_by_copying for one in config.experts)

    def keep_measured() -> Coroutine[None, None, None]:
        return _keep_measured(cache, config)

    lifespan = _lifespan(service, keep_measured, reloader, telemetry if wakes_by_copying else None)

    def before_stop() -> None:
        cache.stop_admitting()
        cache.events.close()

    return Listener(
        build_api(service, reloader, lifespan),
        config.http.host,
        config.http.port,
        before_stop,
        config.http.shutdown_seconds,
        config.http.tls,
    )


class _Rebuild:
    """Rebuilds the reloadable parts from the files on disk; see `Reloader`."""

    def __init__(self, running: ServerConfig, reread: Callable[[], ServerConfig], served: ServedExperts) -> None:
        self._running = running
        self._reread = reread
        self._served = served

    def __call__(self, serving: Serving) -> Fresh:
        """Build them. Raises ReloadRefused, ConfigError or ArtifactError; then nothing changes."""
        wanted = self._reread()
        changed, news = live_changes(self._running, wanted), expert_changes(self._running, wanted)
        reshaped = build_turnover(news, self._running, wanted, self._served.capacity, self._served.running_engine)
        before = None if any(key.startswith("router.embeddings") for key in changed) else serving
        built = build_serving(wanted, build_router(wanted), before)  # checks all files, also unused ones
        decides_alike = not any(key.startswith(("router", "experts.")) for key in changed)
        if decides_alike and built.router.version == serving.router.version:
            built = replace(built, router=serving.router, traffic=serving.traffic)  # keep their counts
        elif not any(key.startswith("router") for key in changed):
            built = _with_counts_of(serving, built)

        def take_over() -> None:
            self._served.take_over(reshaped, wanted)
            self._running = wanted

        return Fresh(built, build_guard(wanted), wanted.log.prompts, changed, reshaped.news.as_json(), take_over)


def _with_counts_of(before: Serving, built: Serving) -> Serving:
    """The new router with the spending and the drift watch of the old one, if both have the same artifact."""
    one, other = before.router, built.router
    if not (isinstance(one, Router) and isinstance(other, Router) and one.version == other.version):
        return built
    other.meters = one.meters
    return replace(built, traffic=before.traffic)


async def _keep_measured(cache: ExpertCache, config: ServerConfig) -> None:
    """Save the measured costs and footprints after each move."""
    moved = asyncio.Event()
    cache.events.subscribe(lambda event: moved.set() if event.kind == "move" else None)
    while True:
        await moved.wait()
        moved.clear()
        try:
            await asyncio.to_thread(write_costs, costs_file(config), cache.slots.measured_costs())
            experts = [slot.expert for slot in cache.slots.values()]
            await asyncio.to_thread(keep_footprints, footprints_file(config), experts)
        except OSError as error:
            logger.warning("cannot save measured costs and footprints: %s (state_directory)", error)
            return


def _lifespan(
    service: Service,
    keep_measured: Callable[[], Coroutine[None, None, None]],
    reloader: Reloader,
    telemetry: Telemetry | None,
) -> Lifespan:
    cache, journal = service.cache, service.journal

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        conductor = asyncio.create_task(cache.run())
        conductor.add_done_callback(_stop_without_conductor)
        keeper = asyncio.create_task(keep_measured())
        tasks = [conductor, keeper]
        if service.learner is not None:
            tasks.append(asyncio.create_task(service.learner.run()))
        if service.nodes is not None:
            following = asyncio.create_task(service.nodes.run())
            following.add_done_callback(_stop_without_nodes)
            tasks.append(following)
        if telemetry is not None:
            tasks.append(asyncio.create_task(_measure_copying(telemetry)))
        with suppress(ValueError, RuntimeError, NotImplementedError):  # only the main thread gets signals
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.begin)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            if service.comparer is not None:
                await service.comparer.close()
            await reloader.close()
            await asyncio.to_thread(service.bodies.close)
            await asyncio.to_thread(service.tracing.close)
            if journal is not None:
                await asyncio.to_thread(journal.stop)

    return lifespan


async def _measure_copying(telemetry: Telemetry) -> None:
    """Measure the speed limit of a wake on a CPU, in the background."""
    telemetry.bandwidth.measured(Tier.HOST, Tier.DEVICE, await asyncio.to_thread(copy_bytes_per_second))


def _stop_without_nodes(following: asyncio.Task[None]) -> None:
    """Log the failure and stop the front, which no longer knows its nodes."""
    if not following.cancelled() and following.exception() is not None:
        logger.critical("following the nodes failed; the server stops", exc_info=following.exception())
        signal.raise_signal(signal.SIGTERM)


def _stop_without_conductor(conductor: asyncio.Task[None]) -> None:
    """Log the conductor's failure and stop the server, which can no longer move experts."""
    if not conductor.cancelled() and conductor.exception() is not None:
        logger.critical("the conductor failed; the server stops", exc_info=conductor.exception())
        signal.raise_signal(signal.SIGTERM)
