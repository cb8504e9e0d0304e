"""Experts with their engines and the memory of the tiers, built from settings; nothing is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from coe_server.cache.costs import read_costs
from coe_server.cache.planner import left_out, mib, pinned
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.config.schema import ServerConfig, proxies_of_environment
from coe_server.config.types import Share
from coe_server.engines.memory import available_host_bytes, card_bytes
from coe_server.engines.settings import ExpertSettings, Platform, Surroundings
from coe_server.engines.vllm_command import detect_platform
from coe_server.errors import ConfigError


def build_experts(config: ServerConfig) -> list[Expert]:
    """Every expert with its engine; nothing is started."""
    surroundings = _surroundings(config)
    costs = read_costs(costs_file(config))
    return [replace(_expert(settings, surroundings), costs=costs.get(settings.name, {})) for settings in config.experts]


def platform_of(config: ServerConfig) -> Platform:
    return detect_platform() if config.vllm.platform == "auto" else config.vllm.platform


def costs_file(config: ServerConfig) -> Path:
    return config.state_directory / "costs.json"


def logs_folder(config: ServerConfig) -> Path:
    """Where the engines' logs are: two servers' would overwrite each other."""
    return config.vllm.log_directory or config.state_directory / "logs"


def _surroundings(config: ServerConfig) -> Surroundings:
    return Surroundings(
        environment=config.environment,
        secret_variables=config.secret_variables,
        log_directory=logs_folder(config),
        platform=platform_of(config),
        vllm=config.vllm,
        longest_answer_seconds=config.scheduling.max_generation_seconds,
        proxy_for=proxies_of_environment().for_address,
        whole_device_bytes=lambda: _whole_device_bytes(config),
    )


def _whole_device_bytes(config: ServerConfig) -> int:
    """What is available changes from one look to the next; a figure of the configuration does not."""
    device = build_capacity(config).device
    return device if isinstance(config.memory.device, int) else int(0.9 * device)


def _expert(settings: ExpertSettings, surroundings: Surroundings) -> Expert:
    return Expert(
        name=settings.name,
        engine=settings.build(surroundings),
        pin=Tier(settings.pin or Tier.DISK),
        preload=Tier(settings.preload or settings.pin or Tier.DISK),
        ttl_seconds=settings.ttl_seconds,
        remote=settings.remote,
    )


def build_capacity(config: ServerConfig, card: Callable[[], int] = card_bytes) -> Bytes:
    """The tiers' capacities in bytes; `card` tells what a GPU has. Raises ConfigError for more than there is."""
    available = available_host_bytes()
    device, host = config.memory.device, config.memory.host
    if not _weights_here(config):  # simulated and remote experts take no memory here: any figure is fine
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
    """How much of this machine's RAM the tiers may fill, in bytes: both without a GPU, none without an engine here."""
    if not _weights_here(config):
        return 0
    return capacity.host if platform_of(config) == "cuda" else capacity.device + capacity.host


def refuse_what_never_fits(experts: list[Expert], capacity: Bytes) -> None:
    """Raises ConfigError naming the first expert that cannot fit on the device even after every permitted eviction."""
    at_their_pins = (pinned(expert.name, expert.engine.footprint, expert.pin) for expert in experts)
    for name, why in left_out(at_their_pins, capacity).items():
        raise ConfigError(f"experts.{name}: {why} (memory.device, memory.host)")


def _weights_here(config: ServerConfig) -> bool:
    return any(expert.weights_here for expert in config.experts)


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
