"""How much the tiers hold, and whether every expert can ever come to the device."""

from __future__ import annotations

from collections.abc import Callable

from coe_server.assembly.experts import platform_of
from coe_server.cache.planner import left_out, mib, pinned
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes
from coe_server.config import ServerConfig, VllmExpert
from coe_server.engines.machine import available_host_bytes, card_bytes
from coe_server.errors import ConfigError
from coe_server.settings.amounts import Share


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
    """Raises ConfigError naming the first expert that cannot come to the device, whoever leaves."""
    at_their_pins = (pinned(expert.name, expert.engine.footprint, expert.pin) for expert in experts)
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
