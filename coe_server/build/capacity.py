"""The tiers' capacities, card by card, from settings and this machine's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coe_server.cache.tiers import Bytes, mib
from coe_server.config.schema import ServerConfig
from coe_server.config.types import Share
from coe_server.engines.cards import DeviceBytes, card_readings
from coe_server.engines.cores import Cores, divided, here
from coe_server.engines.memory import available_host_bytes
from coe_server.engines.settings import Platform
from coe_server.engines.vllm.command import detect_platform
from coe_server.errors import ConfigError, EngineError

# Left free on a card for the driver and fragmentation.
_LEAST_SPARE_BYTES, _SPARE_SHARE = 512 << 20, 0.02

# Shares of the available memory for `auto`.
_RAM_AS_DEVICE, _HOST_BESIDE_IT, _HOST_BESIDE_A_GPU, _SIMULATED = 0.3, 0.5, 0.8, 0.9

Setting = int | Share | None


def build_capacity(config: ServerConfig, cards: Callable[[], Sequence[DeviceBytes]] = card_readings) -> Bytes:
    """The tiers' capacities in bytes. `cards` reads the GPUs. Raises ConfigError if settings exceed the memory."""
    available, host = available_host_bytes(), config.memory.host
    if not weights_here(config):  # simulated and remote experts use no memory here: any size is valid
        return Bytes(ram_as_cards(config, available, _SIMULATED), amount_of(host, available, _SIMULATED))
    refuse_division(config)
    if platform_of(config) == "cuda":
        capacity = Bytes(_device_limits(config, cards), amount_of(host, available, _HOST_BESIDE_A_GPU))
    else:
        _refuse_too_few_cores(config)
        capacity = Bytes(ram_as_cards(config, available), amount_of(host, available, _HOST_BESIDE_IT))
    taken = ram_of_tiers(config, capacity)
    if taken > available:
        raise ConfigError(
            f"memory: device and host together need {mib(taken)} of RAM; {mib(available)} is available; lower them"
        )
    return capacity


def platform_of(config: ServerConfig) -> Platform:
    return detect_platform() if config.vllm.platform == "auto" else config.vllm.platform


def weights_here(config: ServerConfig) -> bool:
    return any(expert.weights_here for expert in config.experts)


def ram_of_tiers(config: ServerConfig, capacity: Bytes) -> int:
    """Bytes of RAM that the tiers may fill: host, and without a GPU also device; 0 without local engines."""
    if not weights_here(config):
        return 0
    return capacity.host if platform_of(config) == "cuda" else capacity.device + capacity.host


def cores_of_cards(config: ServerConfig) -> tuple[Cores, ...]:
    """The cores of each card into which this machine is divided; empty if it is not divided."""
    count = config.memory.cards or 1
    return divided(here(), count) if count > 1 and platform_of(config) == "cpu" else ()


def refuse_division(config: ServerConfig) -> None:
    """Raise ConfigError if `memory.cards` would divide a machine whose engines have real cards."""
    if config.memory.cards is not None and weights_here(config) and platform_of(config) == "cuda":
        raise ConfigError(
            "memory.cards: divides RAM and cores of a machine without a GPU, and here is one; leave it out, or set"
            " vllm.platform: cpu"
        )


def _refuse_too_few_cores(config: ServerConfig) -> None:
    wanted, there = config.memory.cards or 1, len(here())
    if wanted > there:
        raise ConfigError(f"memory.cards: each card needs a core, and this server may run on {there}; lower {wanted}")


def ram_as_cards(config: ServerConfig, available: int, default_share: float = _RAM_AS_DEVICE) -> tuple[int, ...]:
    """Bytes of each card without a GPU: equal shares of the available RAM."""
    count = config.memory.cards or 1
    return tuple(amount_of(one, available // count, default_share) for one in for_each_card(config, count))


def for_each_card(config: ServerConfig, count: int) -> tuple[Setting, ...]:
    """The setting of `memory.device` for each card. Raises ConfigError for a list of another length."""
    setting = config.memory.device
    if not isinstance(setting, tuple):
        return (setting,) * count
    if len(setting) != count:
        there = "there is one card" if count == 1 else f"there are {count} cards"
        divide = platform_of(config) == "cpu" and config.memory.cards is None
        way_out = f"; memory.cards: {len(setting)} divides this machine's RAM and cores into as many" if divide else ""
        raise ConfigError(f"memory.device: it lists {len(setting)} amounts, and {there}{way_out}")
    return setting


def _device_limits(config: ServerConfig, cards: Callable[[], Sequence[DeviceBytes]]) -> tuple[int, ...]:
    """Device capacity per card. Sizes in bytes need no card, so that a configuration can be checked without one."""
    setting = config.memory.device
    try:
        found = cards()
    except EngineError as error:
        given = setting if isinstance(setting, tuple) else (setting,)
        if all(isinstance(one, int) for one in given):
            return tuple(one for one in given if isinstance(one, int))
        raise ConfigError(f"memory.device: {error}; give the size in bytes, e.g. 70GiB") from error
    return tuple(map(card_limit, for_each_card(config, len(found)), found))


def card_limit(setting: Setting, there: DeviceBytes) -> int:
    """Bytes of one card that `memory.device` allows. Raises ConfigError if the card has less."""
    if setting is None:  # auto: memory used by other programs is left out
        return max(0, there.free - max(_LEAST_SPARE_BYTES, int(_SPARE_SHARE * there.total)))
    if (amount := amount_of(setting, there.total, 1.0)) > there.total:
        raise ConfigError(f"memory.device: {mib(amount)} is more than the card has ({mib(there.total)}); lower it")
    return amount


def amount_of(setting: Setting, available: int, default_share: float) -> int:
    if isinstance(setting, int):
        return setting
    return int(available * (setting.fraction if setting else default_share))
