"""`coe validate`: checks a configuration before a start and prints its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coe_server.build.capacity import cores_of_cards, ram_of_tiers
from coe_server.build.experts import (
    ask_hub,
    build_expert,
    costs_file,
    footprints_file,
    require_vllm,
    seats_here,
    surroundings_of,
)
from coe_server.build.service import build_guard, build_router, build_serving, require_tracing
from coe_server.cache.costs import read_costs
from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.placement import Demand, kept_by_sleepers, used_by_loaded
from coe_server.cache.planner import mib
from coe_server.cache.scheduler import Limits
from coe_server.cache.seats import Card, candidate_seats
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.commands.bounds import bounds_of_groups, wait_bound
from coe_server.commands.config_warnings import dead_configuration
from coe_server.commands.hints import hints
from coe_server.commands.machine import Machine, for_machine, rooms
from coe_server.commands.plan import (
    Plan,
    as_json,
    headline,
    make_plan,
    planned,
    together,
    typical_wait,
    without_width,
)
from coe_server.config.schema import ServerConfig, read_config
from coe_server.engines.engine import Footprint
from coe_server.engines.hub import gib
from coe_server.engines.settings import ExpertSettings
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.measured_footprints import read_footprints
from coe_server.errors import ArtifactError, ConfigError
from coe_server.http.serving import Decides
from coe_server.keys import Key

_T = TypeVar("_T")

GATEWAY_BYTES = 1 << 30  # for the server's own process: about 100 MB, plus large bodies and many streams


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


def report(checked: Checked, console: Console) -> dict[str, Any]:
    """Print the report, most important first, and return it as JSON."""
    plan, settings = checked.plan, checked.settings
    if plan is None or settings is None or checked.mistakes:
        nothing: dict[str, Any] = {"fits": False, "cards": [], "experts": [], "awake_together": [], "wait": None}
        return nothing | {"mistakes": checked.mistakes, "hints": []}
    capacity = Bytes(plan.rooms.cards, plan.rooms.host)
    console.print(headline(plan))
    told = list(hints(plan))
    if not plan.fits:
        _print_hints(told, console)
        console.print(plan_table(plan, settings))
        return as_json(plan, None, told)
    cache = ExpertCache(checked.experts, capacity, Limits(**settings.scheduling.model_dump()))
    asleep, disk = typical_wait(checked.experts)
    for sentence in (*together(plan), _wait_in_short(cache, asleep, disk)):
        console.print(sentence)
    _print_hints(told, console)
    console.print(plan_table(plan, settings))
    if len(plan.rooms.cards) == 1:
        for sentence in placement(checked.experts, capacity):
            console.print(sentence)
    elif settings.memory.cards:
        console.print(_cores(settings))
    console.print(container_limit(ram_of_tiers(settings, capacity)))
    _print_router(checked, settings, capacity, console)
    for sentence in (wait_bound(cache), *bounds_of_groups(cache)):
        console.print(sentence)
    wait = {"typical": asleep, "from_disk": disk, "bound": cache.waits.bound_seconds()}
    return as_json(plan, wait, told)


def _cores(settings: ServerConfig) -> str:
    """Which cores the engines of each card run on."""
    shares = enumerate(cores_of_cards(settings))
    told = [f"on card {card} on {', '.join(map(str, cores))}" for card, cores in shares]
    return f"Engines run on these cores: {'; '.join(told)}."


def _print_hints(told: Sequence[str], console: Console) -> None:
    for sentence in told:
        console.print(f"[cyan]hint:[/cyan] {escape(sentence)}")


def _print_router(checked: Checked, settings: ServerConfig, capacity: Bytes, console: Console) -> None:
    router = checked.router
    assert router is not None, "without a router there is a mistake"
    served = ", ".join(router.objectives) or "none (experts by name)"
    console.print(f"router {router.version}, objectives: {served}")
    for warning in dead_configuration(settings, router, checked.experts, capacity, checked.keys):
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")


def _wait_in_short(cache: ExpertCache, asleep: float, disk: float) -> str:
    known = "measured" if cache.waits.costs_are_measured else "estimated, not yet measured"
    typical = (
        f"Typical wait for an expert that is not loaded: {asleep:,.1f} s from host memory, {disk:,.0f} s from disk"
    )
    if not cache.waits.groups:
        typical = "Typical wait: none, no experts share the device"
    return (
        f"{typical} ({known}); with full queues {cache.waits.usual_bound_seconds():,.0f} s. Guaranteed limit"
        f" {cache.waits.bound_seconds():,.0f} s; lower max_generation_seconds or queue_limit to shorten it."
    )


def plan_table(plan: Plan, settings: ServerConfig) -> Table:
    """Each expert's bytes per card and in host memory, and the limits."""
    engines = {one.name: one.engine for one in settings.experts}
    heads = ("expert", "engine", "cards", "loaded", "asleep keeps", "host", "KV tokens", "pin")
    table = Table(*heads, title="on each card" if any(one.demand.width > 1 for one in plan.experts) else None)
    for one in plan.experts:
        need = one.demand
        asleep = gib(need.asleep) if need.can_sleep else "never sleeps"
        tokens = f"{one.kv_tokens:,}" if one.kv_tokens else ""
        pin = "" if need.pin is Tier.DISK else need.pin.value
        sizes = (str(need.width), gib(need.awake), asleep, gib(need.host))
        table.add_row(need.name, engines[need.name], *sizes, tokens, pin)
    for name in engines.keys() - {one.demand.name for one in plan.experts}:
        table.add_row(name, engines[name], "", "", "", "", "", "")
    table.add_section()
    used, kept = used_by_loaded(plan.found, plan.demands), kept_by_sleepers(plan.found, plan.demands)
    for index, size in enumerate(plan.rooms.cards):
        place = "limit" if len(plan.rooms.cards) == 1 else f"card {index}"
        host = gib(plan.rooms.host) if index == 0 else ""
        row = f"{gib(used[index])} of {gib(size)}", f"{gib(kept[index])}"
        table.add_row(place, "", "", *row, host, "", "")
    return table


def container_limit(tiers_bytes: int) -> str:
    """The memory limit that a container or cgroup needs, as a sentence. `tiers_bytes`: RAM of the tiers."""
    least = -(-(tiers_bytes + GATEWAY_BYTES) // 2**20)
    return (
        f"A container's memory limit (COE_MEMORY in compose.yaml, MemoryMax of a unit): at least {least}m: "
        f"{mib(tiers_bytes)} for the tiers in RAM and {mib(GATEWAY_BYTES)} for the server itself."
    )


def placement(experts: Sequence[Expert], capacity: Bytes) -> list[str]:
    """Sentences: how many experts fit on the device at once, and the tier of each when the server is ready."""
    local = [expert for expert in experts if not expert.remote]
    if not local:
        return ["Every expert is remote: no weights move here."]
    sizes = sorted(expert.engine.footprint.device_awake for expert in local)
    most, fewest = _how_many(sizes, capacity.device), _how_many(sizes[::-1], capacity.device)
    at_once = f"{fewest}" if most == fewest else f"{fewest} (the largest) to {most} (the smallest)"
    sentences = [f"On the device at once: {at_once} of {len(local)} local experts."]
    never_in_host = [one.name for one in local if not one.engine.footprint.can_sleep]
    if never_in_host:
        sentences.append(f"On the device or on disk, never in host memory: {', '.join(never_in_host)}.")
    for tier in (Tier.DEVICE, Tier.HOST):
        names = [one.name for one in local if min(one.preload, one.pin, key=lambda goal: goal.depth) is tier]
        if names:
            sentences.append(f"In {tier.value} memory when ready: {', '.join(names)}.")
    return sentences


def _how_many(sizes: Sequence[int], room: int) -> int:
    count = 0
    for size in sizes:
        room -= size
        if room < 0:
            break
        count += 1
    return count
