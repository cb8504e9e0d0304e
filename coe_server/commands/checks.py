"""Every check of a configuration that a start makes, without starting anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from coe_server.build.experts import (
    ask_hub,
    build_expert,
    costs_file,
    footprints_file,
    require_vllm,
    seats_here,
    surroundings_of,
)
from coe_server.build.guard import build_guard
from coe_server.build.router import build_router
from coe_server.build.service import build_serving, require_tracing
from coe_server.cache.costs import read_costs
from coe_server.cache.placement import Demand
from coe_server.cache.seats import Card, candidate_seats
from coe_server.cache.slot import Expert
from coe_server.commands.machine import Machine, for_machine, rooms
from coe_server.commands.plan import Plan, make_plan, planned, without_width
from coe_server.config.schema import ServerConfig, read_config
from coe_server.engines.engine import Footprint
from coe_server.engines.settings import ExpertSettings
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.footprint import read_footprints
from coe_server.errors import ArtifactError, ConfigError
from coe_server.http.serving import Decides
from coe_server.keys import Key

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of the checks. With mistakes only the parts that could be built are set."""

    mistakes: list[str]
    plan: Plan | None = None
    settings: ServerConfig | None = None
    experts: tuple[Expert, ...] = ()
    router: Decides | None = None
    keys: tuple[Key, ...] = ()


def check(path: Path, machine: Machine | None) -> Checked:
    """Make all checks of a start and collect every mistake. Starts nothing; `machine` replaces detection."""
    try:
        settings, mistakes = read_config(path)
    except ConfigError as error:
        return Checked([str(error)])
    if settings is None:
        return Checked(mistakes)
    settings = settings if machine is None else for_machine(settings, machine)

    def built(make: Callable[[], _T]) -> _T | None:
        try:
            return make()
        except (ConfigError, ArtifactError) as error:
            mistakes.append(str(error))
            return None

    if machine is None:
        built(lambda: require_vllm(settings))
    room = built(lambda: rooms(settings, machine))
    experts = _experts(settings, machine, mistakes)
    router = built(lambda: build_router(settings))
    guard = built(lambda: build_guard(settings))
    built(lambda: require_tracing(settings))
    if router is not None:
        built(lambda: build_serving(settings, router))  # checks the rest of the artifact
    mistakes = list(dict.fromkeys(mistakes))
    own = settings.with_engines
    if room is None or len(experts) < len(own):
        return Checked(mistakes)
    local = [planned(one, found, settings) for one, found in zip(own, experts, strict=True) if not found.remote]
    keys = tuple(guard.keyring.keys) if guard is not None else ()
    plan = make_plan(local, room)
    return Checked(mistakes, plan, settings, tuple(_on_their_cards(settings, experts, plan)), router, keys)


def _on_their_cards(settings: ServerConfig, experts: Sequence[Expert], plan: Plan) -> Iterator[Expert]:
    """With the seats, and the share of each card, that they have on the machine of the plan; as they are without."""
    demands = {one.name: one for one in plan.demands}
    cards = [Card(index, size) for index, size in enumerate(plan.rooms.cards)]
    for one, expert in zip(settings.with_engines, experts, strict=True):
        demand, among = demands.get(expert.name), one.cards or ()
        width = demand.width if demand is not None else 1
        allowed = {card for card in among if isinstance(card, int)} if among else None
        seats = () if expert.remote else candidate_seats(cards, width, allowed or None)
        engine = expert.engine
        if demand is not None and width > 1 and isinstance(engine, VllmEngine):
            share = _on_each_card(engine.footprint, demand)
            engine = VllmEngine(replace(engine.launch, measured=share))
        yield replace(expert, engine=engine, width=width, seats=seats or expert.seats)


def _on_each_card(whole: Footprint, demand: Demand) -> Footprint:
    """Of an expert that was built as if it had one card."""
    process = whole.host_process * demand.width
    return Footprint(demand.awake, demand.asleep, process, demand.host - process)


def _experts(settings: ServerConfig, machine: Machine | None, mistakes: list[str]) -> tuple[Expert, ...]:
    """The experts that can be built; adds the mistakes of the others. In threads: each may ask the hub for seconds."""
    costs = read_costs(costs_file(settings))
    measured = read_footprints(footprints_file(settings)) if machine is None else {}
    surroundings = surroundings_of(settings, ask_hub, measured)

    def build(one: ExpertSettings) -> Expert | ConfigError:
        try:
            if machine is None and settings.memory.cards:
                seats_here(one, surroundings)
            expert = build_expert(without_width(one), surroundings, ((0,),) if one.cards_taken > 1 else None)
        except ConfigError as error:
            return error
        return replace(expert, costs=costs.get(one.name, {}) if machine is None else {})

    with ThreadPoolExecutor(max_workers=16) as pool:
        found = list(pool.map(build, settings.with_engines))
    told = {mistake.partition(": ")[0] for mistake in mistakes}
    new = (str(one) for one in found if isinstance(one, ConfigError))
    mistakes.extend(mistake for mistake in new if mistake.partition(": ")[0] not in told)
    return tuple(one for one in found if isinstance(one, Expert))
