"""`coe simulate`: builds machine and trace, runs every policy, prints a table and writes files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.progress import Progress
from rich.table import Table

from coe_server.build.capacity import build_capacity
from coe_server.build.experts import build_experts, refuse_what_never_fits
from coe_server.cache.policy import POLICIES, Limits
from coe_server.commands.terminal import mistakes_as_sentences, no_room_for, table_console, that_fits
from coe_server.config.schema import ServerConfig, load_config
from coe_server.errors import ConfigError, DatasetError
from coe_server.simulation.comparison import Bound, Comparison, Measures, compare, compare_nodes
from coe_server.simulation.nodes import RULES, node_names, with_own_preloads
from coe_server.simulation.scenario import expert_names, made_up_scenario, scenario_of
from coe_server.simulation.simulator import Scenario, Timing
from coe_server.simulation.timeline import draw_timeline
from coe_server.simulation.traces import Profile, Trace, make_trace, read_trace
from coe_server.system.files import require_writable_file

EXPERTS, REQUESTS = 5, 300  # of a profile, by default
_WIDE = 2  # cards


def simulate(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Experts, limits and timings. Default: made-up ones.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines: arrival_seconds, expert or scores, output_tokens; prompt_tokens, priority, fan_out."
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Made-up traffic: balanced, bursty, dominant, interleaved, zipf or shift.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="Number of made-up experts in a profile. Default 5.", min=1)
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Number of requests in a profile. Default 300.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same profile. Default 0.")] = None,
    on_device: Annotated[
        int | None, typer.Option(help="Made-up experts that fit on a card. Default 2 of 5, 3 of 20, else 4.", min=1)
    ] = None,
    in_host: Annotated[
        int | None, typer.Option(help="Made-up experts that fit in host memory. Default all of 20, else half.", min=1)
    ] = None,
    cards: Annotated[int | None, typer.Option(help="Cards of the made-up machine. Default 1.", min=1, max=64)] = None,
    wide: Annotated[int | None, typer.Option(help="Made-up experts that take two cards. Default 0.", min=1)] = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Machines like this one behind one front, which chooses. Default none.", min=1, max=64),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Only this one: coe, fifo, lru, lfu; with --nodes coe, round-robin, least-queue, hashed. Default all."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Score given up for an expert on the device (with scores).", min=0, max=1)
    ] = 0.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    timeline: Annotated[Path | None, typer.Option(help="Draw the first policy's run to this file (SVG).")] = None,
) -> None:
    """Simulate traffic with the server's own scheduler, and compare it with other policies and the optimum.

    No engine is started; a virtual clock runs hours of traffic in seconds. Model: an engine serves up to
    max_concurrency requests at once at full speed. Serving share = W / (W + blocked); W: seconds that all answers take
    alone; blocked: seconds in which a request waits and none generates.

    Examples: coe simulate --profile bursty; coe simulate serve.yaml --trace trace.jsonl --policy coe
    """
    options = SimulationOptions(
        config, trace, profile, experts, requests, seed, on_device, in_host, cards, wide, nodes, policy, tolerance
    )
    with mistakes_as_sentences():
        run_simulation(options, json_file, timeline)


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """What to simulate; None if not given."""

    config: Path | None = None
    trace: Path | None = None
    profile: str | None = None
    experts: int | None = None
    requests: int | None = None
    seed: int | None = None
    on_device: int | None = None
    in_host: int | None = None
    cards: int | None = None
    wide: int | None = None
    nodes: int | None = None
    policy: str | None = None
    tolerance: float = 0.0


def run_simulation(options: SimulationOptions, json_file: Path | None, timeline: Path | None) -> None:
    """Simulate the trace, print a table, and write the requested files. Raises ConfigError or DatasetError."""
    for option, file in (("--json", json_file), ("--timeline", timeline)):
        if file is not None:
            require_writable_file(option, file)
    if options.nodes is not None and timeline is not None:
        raise ConfigError("--timeline: has no effect with --nodes; it draws one machine")
    names = _chosen(options.policy, tuple(POLICIES if options.nodes is None else RULES))
    scenario, trace = _stage(options)
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{trace.name}, {len(trace.requests)} requests", total=len(names))
        found = _compared(options, scenario, trace, names, lambda _: progress.advance(task))
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")
    if timeline is not None:
        name = names[0]
        title = f"{trace.name}: {len(trace.requests)} requests for {len(trace.experts)} experts, policy {name}"
        timeline.write_text(draw_timeline(found.runs[name], title), encoding="utf-8")
    _print(found, options.nodes)


def _chosen(name: str | None, known: Sequence[str]) -> Sequence[str]:
    if name is None:
        return known
    if name not in known:
        raise ConfigError(f"--policy: '{name}' is not one of {', '.join(known)}")
    return (name,)


def _compared(
    options: SimulationOptions, scenario: Scenario, trace: Trace, names: Sequence[str], done: Callable[[str], None]
) -> Comparison:
    """Under policies of one machine's cache or, with several nodes, under rules of the front."""
    if options.nodes is None:
        return compare(scenario, trace, [POLICIES[name] for name in names], options.tolerance, done)
    nodes = node_names(options.nodes)
    is_made_up = options.config is None
    there = with_own_preloads(scenario, nodes) if is_made_up else dict.fromkeys(nodes, scenario)
    return compare_nodes(there, trace, {name: RULES[name] for name in names}, options.tolerance, done)


def _stage(options: SimulationOptions) -> tuple[Scenario, Trace]:
    """The machine and its trace."""
    if (options.trace is None) == (options.profile is None):
        raise ConfigError("give either --trace FILE or --profile NAME")
    _refuse_unused(options)
    if options.config is not None:
        scenario = _configured(load_config(options.config))
        return scenario, _trace(options, [expert.name for expert in scenario.experts])
    if options.trace is not None:
        trace = _trace(options, [])
        names = list(trace.experts)
    else:
        names = expert_names(options.experts or EXPERTS)
        trace = _trace(options, names)
    cards, wide = options.cards or 1, options.wide or 0
    if wide and cards < _WIDE:
        raise ConfigError(f"--wide: {wide} experts take two cards each, and there is one; give --cards")
    return made_up_scenario(names, options.on_device, options.in_host, cards=cards, wide=wide), trace


def _refuse_unused(options: SimulationOptions) -> None:
    """Raise ConfigError for an option without effect, because a file already gives its value."""
    made_up_experts = {"--experts": options.experts, "--on-device": options.on_device, "--in-host": options.in_host}
    made_up_cards = {"--cards": options.cards, "--wide": options.wide}
    if options.config is not None:
        _refuse_any(made_up_experts | made_up_cards, f"experts and machine come from {options.config}")
    if options.trace is not None:
        made_up_requests = {"--experts": options.experts, "--requests": options.requests, "--seed": options.seed}
        _refuse_any(made_up_requests, f"requests and their experts come from {options.trace}")


def _refuse_any(options: Mapping[str, int | None], why: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option}: has no effect, since {why}; give only one of them")


def _trace(options: SimulationOptions, names: list[str]) -> Trace:
    if options.trace is not None:
        try:
            with options.trace.open(encoding="utf-8-sig") as lines:
                return read_trace(options.trace.name, lines)
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{options.trace}: cannot be read ({error})") from error
    for profile in get_args(Profile):
        if profile == options.profile:
            return make_trace(profile, names, options.requests or REQUESTS, options.seed or 0)
    raise ConfigError(f"--profile: '{options.profile}' is not one of {', '.join(get_args(Profile))}")


def _configured(config: ServerConfig) -> Scenario:
    experts, capacity = build_experts(config), build_capacity(config)
    refuse_what_never_fits(experts, capacity)
    timings = {expert.name: Timing(**expert.timings) for expert in config.experts if expert.timings is not None}
    scenario = scenario_of(experts, timings, capacity, Limits(**config.scheduling.model_dump()))
    if not scenario.experts:
        raise ConfigError("experts: all of them are remote; there is nothing to simulate")
    return scenario


def _print(found: Comparison, nodes: int | None) -> None:
    trace, bound = found.trace, found.bound
    seconds = trace.requests[-1].arrival_seconds
    console = table_console()
    requests, experts = _counted(len(trace.requests), "request"), _counted(len(trace.experts), "expert")
    on_nodes = f", on {_counted(nodes, 'node')}" if nodes else ""
    console.print(f"\n{trace.name}: {requests} for {experts} in {seconds:,.0f} s{on_nodes}")
    columns = tuple(column for column in _COLUMNS if nodes is None or column != _OF_BOUND)
    table, left_out = that_fits(partial(_table, found, nodes is None), columns, _TELL_LEAST, console.width)
    console.print(table, *no_room_for(left_out), sep="\n")
    told = "" if nodes is not None else f" bound: {_kind_of(bound)}."
    console.print(f"share: serving share.{told} GiB: moved to the device.")
    for name, m in found.policies.items():
        for sentence in _remarks(m):
            console.print(f"{name}: {sentence}")


def _kind_of(bound: Bound) -> str:
    return "the optimum, found by search" if bound.exact else "a proven upper bound, perhaps not reachable"


def _counted(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else what + 's'}"


def _remarks(m: Measures) -> Iterator[str]:
    kept = "no request waited longer than" if m.bound_kept else f"[red]a wait of {m.wait_max:,.0f} s exceeds[/red]"
    yield f"{kept} the bound of {m.wait_bound_seconds:,.0f} s."
    if m.refused:
        yield f"{m.refused} requests were refused with 429, so its figures are not comparable."
    if m.resident_choices:
        yield (
            f"{m.resident_choices} requests took a resident expert; {m.score_lost:.3f} of score lost, "
            f"{m.wait_saved_seconds:,.1f} s of waiting saved."
        )


def _table(found: Comparison, has_bound: bool, columns: Sequence[str]) -> Table:
    table = Table("policy", *columns, padding=(0, 0, 0, 1))
    bound = found.bound
    for name, m in found.policies.items():
        table.add_row(name, *(_COLUMNS[column](m, bound) for column in columns))
    if not has_bound:
        return table
    table.add_section()
    least = {
        "switches": f">={bound.switches}",
        "share": f"{bound.serving_share:.3f}",
        "blocked s": f"{bound.blocked_seconds:,.1f}",
    }
    table.add_row("bound", *(least.get(column, "") for column in columns))
    return table


_OF_BOUND = "of bound"
_COLUMNS: dict[str, Callable[[Measures, Bound], str]] = {
    "switches": lambda m, _: str(m.switches),
    "share": lambda m, _: f"{m.serving_share:.3f}",
    _OF_BOUND: lambda m, bound: f"{m.serving_share / bound.serving_share:.3f}",
    "blocked s": lambda m, _: f"{m.blocked_seconds:,.1f}",
    "wait s: mean": lambda m, _: f"{m.wait_mean:,.1f}",
    "p95": lambda m, _: f"{m.wait_p95:,.1f}",
    "max": lambda m, _: f"{m.wait_max:,.1f}",
    "makespan s": lambda m, _: f"{m.makespan_seconds:,.0f}",
    "GiB": lambda m, _: f"{m.bytes_moved / 2**30:,.0f}",
}
_TELL_LEAST = ("GiB", "makespan s", "p95", "switches", "blocked s", _OF_BOUND)
