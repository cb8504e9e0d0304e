"""`coe validate`: checks a configuration before a start and prints its plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coe_server.build.capacity import cores_of_cards, ram_of_tiers
from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.placement import kept_by_sleepers, used_by_loaded
from coe_server.cache.policy import Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier, mib
from coe_server.commands.bounds import bounds_of_groups, wait_bound
from coe_server.commands.checks import Checked, check
from coe_server.commands.config_warnings import dead_configuration
from coe_server.commands.hints import hints
from coe_server.commands.machine import parse_machine
from coe_server.commands.plan import Plan, as_json, headline, together, typical_wait
from coe_server.commands.terminal import ConfigPath, mistakes_as_sentences, table_console, tell
from coe_server.config.schema import ServerConfig
from coe_server.engines.hub import gib
from coe_server.system.files import require_writable_file

GATEWAY_BYTES = 1 << 30  # for the server's own process: about 100 MB, plus large bodies and many streams


def validate(
    config: ConfigPath,
    machine: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="Plan for another machine: '[Nx]SIZE[+[Nx]SIZE...],host=SIZE'. Neither its GPU nor vLLM is needed.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write plan and mistakes to this file.")] = None,
) -> None:
    """Check a configuration without starting anything, and show the plan.

    The plan shows whether it fits, which experts are loaded together, waits, the experts that the router can choose,
    settings that can never take effect, and hints with numbers. The hub gives the size of models not downloaded.

    Exit code 0: it fits. 1: mistakes, all listed. 4: it does not fit.

    Examples: coe validate serve.yaml; coe validate serve.yaml --machine 24GiB,host=64GiB;
    coe validate serve.yaml --machine 4x80GiB,host=512GiB --json plan.json
    """
    with mistakes_as_sentences():
        if json_file is not None:
            require_writable_file("--json", json_file)
        checked = check(config, None if machine is None else parse_machine(machine))
        found = report(checked, table_console())
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    left_out = checked.plan.found.left_out if checked.plan is not None and not checked.mistakes else {}
    for mistake in (*checked.mistakes, *(f"experts.{name}: {why}" for name, why in left_out.items())):
        tell(mistake if mistake.startswith(str(config)) else f"{config}: {mistake}")
    if checked.mistakes or left_out:
        raise typer.Exit(1 if checked.mistakes else 4)


def report(checked: Checked, console: Console) -> dict[str, Any]:
    """Print the report, most important first, and return it as JSON."""
    plan, settings = checked.plan, checked.settings
    if plan is None or settings is None or checked.mistakes:
        nothing: dict[str, Any] = {"fits": False, "cards": [], "experts": [], "awake_together": [], "wait": None}
        return nothing | {"mistakes": checked.mistakes, "hints": []}
    if checked.experts:
        return _report_experts(checked, plan, settings, console)
    capacity = Bytes(plan.rooms.cards, plan.rooms.host)
    console.print("Fits: a front without experts of its own. Its nodes decide about waits: see coe validate there.")
    console.print(container_limit(ram_of_tiers(settings, capacity)))
    _print_router(checked, settings, capacity, console)
    return as_json(plan, None, [])


def _report_experts(checked: Checked, plan: Plan, settings: ServerConfig, console: Console) -> dict[str, Any]:
    capacity = Bytes(plan.rooms.cards, plan.rooms.host)
    console.print(headline(plan))
    told = list(hints(plan))
    if not plan.fits:
        _print_hints(told, console)
        console.print(plan_table(plan, settings))
        return as_json(plan, None, told)
    cache = ExpertCache(checked.experts, capacity, Limits(**settings.scheduling.model_dump()))
    asleep, disk = typical_wait(checked.experts)
    any_sleeps = any(one.demand.can_sleep for one in plan.experts)
    for sentence in (*together(plan), _wait_in_short(cache, asleep if any_sleeps else None, disk)):
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
    wait = {"typical": asleep, "from_disk": disk, "bound": cache.bounds.seconds()}
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


def _wait_in_short(cache: ExpertCache, asleep: float | None, disk: float) -> str:
    """The typical and the longest wait. `asleep`: seconds from host memory; None if no expert sleeps there."""
    known = "measured" if cache.bounds.are_measured else "estimated, not yet measured"
    from_host = f" {asleep:,.1f} s from host memory," if asleep is not None else ""
    typical = f"Typical wait for an expert that is not loaded:{from_host} {disk:,.0f} s from disk"
    if not cache.bounds.groups:
        typical = "Typical wait: none, no experts share the device"
    return (
        f"{typical} ({known}); with full queues {cache.bounds.usual_seconds():,.0f} s. Guaranteed limit"
        f" {cache.bounds.seconds():,.0f} s; lower max_generation_seconds or queue_limit to shorten it."
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
    local = {one.demand.name for one in plan.experts}
    for name in (name for name in engines if name not in local):
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
