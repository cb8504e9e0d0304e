"""Experts with their engines and the memory of the tiers, built from settings; nothing is started."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from coe_server.cache.costs import read_costs
from coe_server.cache.planner import left_out, mib, pinned
from coe_server.cache.seats import Card, candidate_seats
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.config.schema import (
    ServerConfig,
    proxies_of_environment,
)
from coe_server.config.types import Share
from coe_server.engines.cards import Cards, DeviceBytes, card_readings
from coe_server.engines.engine import Footprint, Seat
from coe_server.engines.footprints import write_footprints
from coe_server.engines.hub import hub_size
from coe_server.engines.memory import available_host_bytes
from coe_server.engines.settings import ExpertSettings, Platform, Surroundings
from coe_server.engines.vllm import VllmEngine
from coe_server.engines.vllm_command import VllmLaunch, detect_platform, hub_source, known_bytes, unsupported_gpu
from coe_server.engines.vllm_settings import VllmExpert, key_of
from coe_server.errors import ConfigError, EngineError

logger = logging.getLogger(__name__)

# Of a card, for what the driver and fragmentation take.
_LEAST_SPARE_BYTES, _SPARE_SHARE = 512 << 20, 0.02

_NOT_MEASURED: Mapping[str, Footprint] = MappingProxyType({})
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
    if platform_of(config) == "cpu" and _weights_here(config) and (told := unsupported_gpu()):
        logger.warning("vllm.platform: %s", told)
    surroundings, costs = surroundings_of(config, size_of_missing), read_costs(costs_file(config))
    return [replace(build_expert(one, surroundings), costs=costs.get(one.name, {})) for one in config.experts]


def platform_of(config: ServerConfig) -> Platform:
    return detect_platform() if config.vllm.platform == "auto" else config.vllm.platform


def footprints_file(config: ServerConfig) -> Path:
    return config.state_directory / "footprints.json"


def keep_footprints(file: Path, experts: Iterable[Expert]) -> None:
    """Write down what this server has measured, for the next start."""
    engines = [expert.engine for expert in experts if isinstance(expert.engine, VllmEngine)]
    measured = {key_of(one.launch): found for one in engines if (found := _plausible(one)) is not None}
    if measured:
        write_footprints(file, measured)


def _plausible(engine: VllmEngine) -> Footprint | None:
    """What was measured, unless it is less than the engine must hold: on a GPU, what ended meanwhile is taken off."""
    found, launch = engine.measured_footprint, engine.launch
    least = known_bytes(launch) // 2 + launch.kv_cache_bytes
    return found if found is not None and found.device_awake >= least else None


def costs_file(config: ServerConfig) -> Path:
    return config.state_directory / "costs.json"


def logs_folder(config: ServerConfig) -> Path:
    """Where the engines' logs are: two servers' would overwrite each other."""
    return config.vllm.log_directory or config.state_directory / "logs"


def surroundings_of(
    config: ServerConfig,
    size_of_missing: MissingSize = refuse_missing,
    measured: Mapping[str, Footprint] = _NOT_MEASURED,
) -> Surroundings:
    """What engines are built in."""
    return Surroundings(
        environment=config.environment,
        secret_variables=config.secret_variables,
        log_directory=logs_folder(config),
        platform=platform_of(config),
        vllm=config.vllm,
        longest_answer_seconds=config.scheduling.max_generation_seconds,
        proxy_for=proxies_of_environment().for_address,
        max_concurrency=config.scheduling.max_concurrency,
        size_of_missing=size_of_missing,
        measured=measured,
        whole_device_bytes=lambda: _whole_device_bytes(config),
        memory_cards=config.memory.cards or 1,
    )


def _whole_device_bytes(config: ServerConfig) -> int:
    """What is available changes from one look to the next; a figure of the configuration does not."""
    device = max(build_capacity(config).cards, default=0)
    return device if isinstance(config.memory.device, int) else int(0.9 * device)


def build_expert(settings: ExpertSettings, surroundings: Surroundings, seats: tuple[Seat, ...] | None = None) -> Expert:
    """One of them, without measured costs; it may lie on `seats`, or where its settings say. Raises ConfigError."""
    return Expert(
        name=settings.name,
        engine=settings.build(surroundings),
        pin=Tier(settings.pin or Tier.DISK),
        preload=Tier(settings.preload or settings.pin or Tier.DISK),
        ttl_seconds=settings.ttl_seconds,
        remote=settings.remote,
        width=settings.cards_taken,
        seats=_seats(settings, surroundings) if seats is None else seats,
    )


def _seats(settings: ExpertSettings, surroundings: Surroundings) -> tuple[Seat, ...]:
    """On which cards it may lie. Raises ConfigError where there are none for it."""
    width = settings.cards_taken
    if settings.remote:
        return ((0,),)
    if not settings.weights_here or surroundings.platform == "cpu":
        return _seats_without_gpu(settings, surroundings.memory_cards)
    try:
        surroundings.cards.visible()
    except EngineError:  # a configuration that is only checked, on a machine without a driver
        return (tuple(range(width)),)
    return seats_of(settings, width, surroundings.cards)


def _seats_without_gpu(settings: ExpertSettings, number: int) -> tuple[Seat, ...]:
    name, width = settings.name, settings.cards_taken
    for index in settings.cards or ():
        if not isinstance(index, int) or not 0 <= index < number:
            raise ConfigError(f"experts.{name}.cards: {index!r} is none of the {number} cards (memory.cards)")
    seats = candidate_seats([Card(index, 1) for index in range(number)], width, settings.cards)  # type: ignore[arg-type]  # indices, as checked
    if seats:
        return seats
    if settings.cards is None:
        raise ConfigError(f"experts.{name}: takes {width} cards, and memory.cards is {number}; raise it")
    raise ConfigError(f"experts.{name}.cards: there is no place for an expert that takes {width} cards")


def require_vllm(config: ServerConfig) -> None:
    """Raises ConfigError where an expert needs vLLM's program and it is not here."""
    command = config.vllm.command[0]
    if any(isinstance(one, VllmExpert) for one in config.experts) and shutil.which(command) is None:
        raise ConfigError(f"vllm.command: there is no program '{command}' (on a CPU: deploy/install-vllm-cpu.sh)")


def seats_of(settings: ExpertSettings, width: int, cards: Cards) -> tuple[Seat, ...]:
    """On which visible cards the expert may lie, by index. Raises ConfigError where its `cards` leave no place."""
    key = f"experts.{settings.name}.cards"
    try:
        visible = cards.visible()
        facts = [cards.facts(uuid) for uuid in visible]
    except EngineError as error:
        raise ConfigError(f"{key}: {error}") from error
    wanted = None if settings.cards is None else {_index_of(name, visible, key) for name in settings.cards}
    known = [
        Card(
            index,
            one.total_bytes,
            one.model,
            frozenset(place for place, uuid in enumerate(visible) if uuid in one.links),
            one.instance,
        )
        for index, one in enumerate(facts)
    ]
    seats = candidate_seats(known, width, wanted)
    if not seats:
        among = "the visible ones" if settings.cards is None else settings.cards
        raise ConfigError(f"{key}: there is no place for an expert that takes {width} cards, among {among}")
    return seats


def _index_of(name: int | str, visible: Sequence[str], key: str) -> int:
    if isinstance(name, int) and 0 <= name < len(visible):
        return name
    matching = [index for index, uuid in enumerate(visible) if isinstance(name, str) and uuid.startswith(name)]
    if len(matching) != 1:
        raise ConfigError(
            f"{key}: {name!r} is none of the visible cards: 0 to {len(visible) - 1}, {', '.join(visible)}"
        )
    return matching[0]


def build_capacity(config: ServerConfig, cards: Callable[[], Sequence[DeviceBytes]] = card_readings) -> Bytes:
    """The tiers' capacities in bytes; `cards` reads the GPUs. Raises ConfigError for more than there is."""
    available = available_host_bytes()
    device, host = config.memory.device, config.memory.host
    number = config.memory.cards or 1
    if not _weights_here(config):  # simulated and remote experts take no memory here: any figure is fine
        return Bytes(divided(device, available, 0.9, number), amount_of(host, available, 0.9))
    if platform_of(config) == "cuda":
        if config.memory.cards is not None:
            raise ConfigError("memory.cards: is for machines without a GPU; the GPUs are counted here, leave it out")
        capacity = Bytes(_device_limits(device, cards), amount_of(host, available, 0.8))
    else:
        capacity = Bytes(divided(device, available, 0.3, number), amount_of(host, available, 0.5))
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
    at_their_pins = (pinned(expert.name, expert.engine.footprint, expert.pin, expert.seats) for expert in experts)
    for name, why in left_out(at_their_pins, capacity).items():
        raise ConfigError(f"experts.{name}: {why} (memory.device, memory.host)")


def _weights_here(config: ServerConfig) -> bool:
    return any(expert.weights_here for expert in config.experts)


def _device_limits(setting: int | Share | None, cards: Callable[[], Sequence[DeviceBytes]]) -> tuple[int, ...]:
    """Bytes stand as they are given where there is no card to ask, as where a configuration is only checked."""
    try:
        return tuple(card_limit(setting, card) for card in cards())
    except EngineError as error:
        if isinstance(setting, int):
            return (setting,)
        raise ConfigError(f"memory.device: {error}; give the size in bytes, e.g. 70GiB") from error


def divided(setting: int | Share | None, available: int, default_share: float, cards: int) -> list[int]:
    """Bytes of each card without a GPU: an amount is given for each, a share of the RAM is divided among them."""
    amount = amount_of(setting, available, default_share)
    return [amount if isinstance(setting, int) else amount // cards] * cards


def card_limit(setting: int | Share | None, there: DeviceBytes) -> int:
    """What `memory.device` gives of one card. Raises ConfigError for more than it has."""
    if setting is None:  # what a desktop or another program has of the card is theirs
        return max(0, there.free - max(_LEAST_SPARE_BYTES, int(_SPARE_SHARE * there.total)))
    if (amount := amount_of(setting, there.total, 1.0)) > there.total:
        raise ConfigError(f"memory.device: {mib(amount)} are more than the card has, {mib(there.total)}; lower it")
    return amount


def amount_of(setting: int | Share | None, available: int, default_share: float) -> int:
    if isinstance(setting, int):
        return setting
    return int(available * (setting.fraction if setting else default_share))
