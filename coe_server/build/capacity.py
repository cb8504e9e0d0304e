"""How much memory each tier has, card by card, from settings and from what this machine has. Starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coe_server.cache.planner import mib
from coe_server.cache.tiers import Bytes
from coe_server.config.schema import ServerConfig
from coe_server.config.types import Share
from coe_server.engines.cards import DeviceBytes, card_readings
from coe_server.engines.cores import Cores, divided, here
from coe_server.engines.memory import available_host_bytes
from coe_server.engines.settings import Platform
from coe_server.engines.vllm_command import detect_platform
from coe_server.errors import ConfigError, EngineError

# Of a card, for what the driver and fragmentation take.
_LEAST_SPARE_BYTES, _SPARE_SHARE = 512 << 20, 0.02

# Parts of what is there, where the configuration says auto.
_RAM_AS_DEVICE, _HOST_BESIDE_IT, _HOST_BESIDE_A_GPU, _SIMULATED = 0.3, 0.5, 0.8, 0.9

Setting = int | Share | None


def build_capacity(config: ServerConfig, cards: Callable[[], Sequence[DeviceBytes]] = card_readings) -> Bytes:
    """The tiers' capacities in bytes; `cards` reads the GPUs. Raises ConfigError for more than there is."""
    available, host = available_host_bytes(), config.memory.host
    if not weights_here(config):  # simulated and remote experts take no memory here: any figure is fine
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
            f"memory: device and host ask for {mib(taken)} of RAM and only {mib(available)} are available; lower them"
        )
    return capacity


def platform_of(config: ServerConfig) -> Platform:
    return detect_platform() if config.vllm.platform == "auto" else config.vllm.platform


def weights_here(config: ServerConfig) -> bool:
    return any(expert.weights_here for expert in config.experts)


def ram_of_tiers(config: ServerConfig, capacity: Bytes) -> int:
    """How much of this machine's RAM the tiers may fill, in bytes: both without a GPU, none without an engine here."""
    if not weights_here(config):
        return 0
    return capacity.host if platform_of(config) == "cuda" else capacity.device + capacity.host


def cores_of_cards(config: ServerConfig) -> tuple[Cores, ...]:
    """The cores of each card into which this machine is divided; none where it is not."""
    count = config.memory.cards or 1
    return divided(here(), count) if count > 1 and platform_of(config) == "cpu" else ()


def refuse_division(config: ServerConfig) -> None:
    """Raises ConfigError where a machine is to be divided that has real cards, and an expert could use them."""
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
    """Bytes of each card without a GPU: parts of the available RAM, of which each card has an equal share."""
    count = config.memory.cards or 1
    return tuple(amount_of(one, available // count, default_share) for one in for_each_card(config, count))


def for_each_card(config: ServerConfig, count: int) -> tuple[Setting, ...]:
    """What `memory.device` says of each card. Raises ConfigError for a list of another length."""
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
    """Bytes stand as they are given where there is no card to ask, as where a configuration is only checked."""
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
    """What `memory.device` gives of one card. Raises ConfigError for more than it has."""
    if setting is None:  # what a desktop or another program has of the card is theirs
        return max(0, there.free - max(_LEAST_SPARE_BYTES, int(_SPARE_SHARE * there.total)))
    if (amount := amount_of(setting, there.total, 1.0)) > there.total:
        raise ConfigError(f"memory.device: {mib(amount)} are more than the card has, {mib(there.total)}; lower it")
    return amount


def amount_of(setting: Setting, available: int, default_share: float) -> int:
    if isinstance(setting, int):
        return setting
    return int(available * (setting.fraction if setting else default_share))
