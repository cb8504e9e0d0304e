"""Several nodes behind one front for `benchmarks.switching`: ours beside round robin, least queue, and hashed."""

from __future__ import annotations

import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from coe_server.cluster.choice import OverNodes
from coe_server.simulation.comparison import Measures, blocked_seconds, measure, serving_share
from coe_server.simulation.nodes import RULES, Seen, least_price, node_names, simulate_nodes, with_own_preloads
from coe_server.simulation.scenario import expert_names, made_up_scenario
from coe_server.simulation.simulator import Answer, Run, Scenario
from coe_server.simulation.traces import PROFILES, Profile, Trace, make_trace

NODES = (1, 2, 4, 8)
GOAL_NODES, GOAL_EXPERTS = 4, 150  # for which the goals are stated
GOAL_OF_WAIT = 0.8  # of the mean wait under each of these, in those profiles
GOAL_OTHERS, GOAL_PROFILES = ("round-robin", "least-queue"), ("zipf", "dominant")
LEVEL = 0.0005  # of the share: the tables show no less
OTHERS = tuple(name for name in RULES if name != "coe")


@dataclass(frozen=True, slots=True)
class NodeMachine:
    """What one node is: experts, how many fit on its card and in its host memory."""

    experts: int
    on_device: int
    in_host: int
    key: str
    requests: int = 300
    seeds: int = 4

    def __str__(self) -> str:
        return f"{self.experts} experts, {self.on_device} on the device and {self.in_host} in host memory of each node"


MACHINES = (
    NodeMachine(20, 3, 20, "20 experts"),
    NodeMachine(20, 3, 10, "20 experts, half in host memory"),
    NodeMachine(150, 4, 75, "150 experts", seeds=3),
)


def stage(machine: NodeMachine, nodes: int, profile: Profile, seed: int) -> tuple[dict[str, Scenario], Trace]:
    """As many requests a node and second as on one machine."""
    names = expert_names(machine.experts)
    scenario = made_up_scenario(names, machine.on_device, machine.in_host)
    trace = make_trace(profile, names, machine.requests, seed)
    requests = tuple(replace(one, arrival_seconds=one.arrival_seconds / nodes) for one in trace.requests)
    return with_own_preloads(scenario, node_names(nodes)), Trace(profile, requests)


@dataclass(frozen=True, slots=True)
class Played:
    """One way on one trace. `share_of_nodes`: W / (W + blocked) with the blocked seconds of all nodes added up."""

    whole: Measures
    share_of_nodes: float


def played(run: Run) -> Played:
    answers: dict[str, list[Answer]] = defaultdict(list)
    for answer in run.answers:
        answers[answer.node].append(answer)
    blocked = sum(blocked_seconds(replace(run, answers=tuple(there))) for there in answers.values())
    return Played(measure(run), serving_share(run.work_seconds, blocked))


def all_ways(machine: NodeMachine, nodes: int, profile: Profile, seed: int) -> dict[str, Played]:
    """On one node every way is the same."""
    ways = RULES if nodes > 1 else {"coe": least_price}
    found = {name: played(simulate_nodes(*stage(machine, nodes, profile, seed), rule)) for name, rule in ways.items()}
    return {name: found.get(name, found["coe"]) for name in RULES}


COLUMNS = (
    *("profile", "share: coe", *OTHERS),
    *("of each node: coe", *OTHERS),
    *("wait s: coe", *OTHERS, "longest, of bound"),
)


def section(machine: NodeMachine, nodes: int, profiles: Sequence[Profile] = PROFILES) -> Iterator[str]:
    yield title(machine, nodes)
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    missed = []
    for profile in profiles:
        print(f"{machine}: {nodes} nodes, {profile}", file=sys.stderr, flush=True)
        runs = [all_ways(machine, nodes, profile, seed) for seed in range(machine.seeds)]
        yield f"| {' | '.join((profile, *_cells(runs)))} |"
        missed += [f"{profile}: {told}" for told in verdicts(machine, nodes, profile, runs)]
    yield ""
    yield verdict(missed)
    yield ""


def title(machine: NodeMachine, nodes: int) -> str:
    on = f"{nodes} nodes" if nodes > 1 else "One node, where every way is the same"
    return f"#### {on}: {machine}; {machine.seeds} traces of {machine.requests} requests"


def verdict(missed: Sequence[str]) -> str:
    return "Ours misses a goal here: " + "; ".join(missed) + "." if missed else "Ours meets every goal here."


def _cells(runs: Sequence[dict[str, Played]]) -> Iterator[str]:
    whole = {way: [run[way].whole.serving_share for run in runs] for way in RULES}
    each = {way: [run[way].share_of_nodes for run in runs] for way in RULES}
    waits = {way: [run[way].whole.wait_mean for run in runs] for way in RULES}
    for found, digits in ((whole, 4), (each, 3), (waits, 2)):
        yield f"{fmean(found['coe']):,.{digits}f}"
        yield from (_beside(found["coe"], found[way], digits) for way in OTHERS)
    yield f"{max(run['coe'].whole.wait_max / run['coe'].whole.wait_bound_seconds for run in runs):.3f}"


def _beside(ours: list[float], other: list[float], digits: int) -> str:
    """The other's mean, and the standard error of the difference to ours."""
    differences = [mine - theirs for mine, theirs in zip(ours, other, strict=True)]
    error = stdev(differences) / len(differences) ** 0.5
    return f"{fmean(other):,.{digits}f} ± {error:,.{digits}f}"


def verdicts(machine: NodeMachine, nodes: int, profile: Profile, runs: Sequence[dict[str, Played]]) -> Iterator[str]:
    if not all(run["coe"].whole.bound_kept for run in runs):
        yield "breaks its wait bound"
    if refused := sum(run["coe"].whole.refused for run in runs):
        yield f"{refused} refused"
    if nodes == GOAL_NODES:
        yield from _more_served(runs)
        if machine.experts == GOAL_EXPERTS and profile in GOAL_PROFILES:
            yield from _waits_too_long(runs)


def _more_served(runs: Sequence[dict[str, Played]]) -> Iterator[str]:
    shares = {way: fmean(run[way].whole.serving_share for run in runs) for way in RULES}
    for way in OTHERS:
        if (more := shares[way] - shares["coe"]) >= LEVEL:
            yield f"{way} serves {more:.4f} more"


def _waits_too_long(runs: Sequence[dict[str, Played]]) -> Iterator[str]:
    waits = {way: fmean(run[way].whole.wait_mean for run in runs) for way in RULES}
    for way in GOAL_OTHERS:
        if (ratio := waits["coe"] / waits[way]) > GOAL_OF_WAIT:
            yield f"its mean wait is {ratio:.2f} of that of {way}, above {GOAL_OF_WAIT}"


def cost_section(nodes: int = 8, requests: int = 20_000) -> Iterator[str]:
    """Processor time of the front for each request: the choice, and what the router is told of every expert."""
    yield "### Switching: the cost of choosing a node"
    yield ""
    machine = replace(MACHINES[-1], requests=requests)
    choosing: list[float] = []
    telling: list[float] = []
    names = expert_names(machine.experts)

    def timed(expert: str, seen: Seen) -> Sequence[str]:
        began = time.thread_time()
        over_nodes = OverNodes(seen.snapshots.values(), seen.sent)
        for name in names:
            over_nodes[name]
        told = time.thread_time()
        found = least_price(expert, seen)
        choosing.append(time.thread_time() - told)
        telling.append(told - began)
        return found

    print(f"cost of choosing, {nodes} nodes, {requests:,} requests", file=sys.stderr, flush=True)
    run = simulate_nodes(*stage(machine, nodes, "zipf", 0), timed)
    yield (
        f"{nodes} nodes, {machine}; {requests:,} requests (zipf), {run.refused:,} refused; Python "
        f"{platform.python_version()}. Processor time of the front for a request, in ms. Goal for deciding: p99 under "
        "2 ms."
    )
    yield ""
    yield "| | mean | p50 | p99 |"
    yield "|---|---|---|---|"
    yield _spread("choosing the node", choosing)
    yield _spread(f"what the router is told of {machine.experts} experts", telling)
    yield _spread("both", [one + other for one, other in zip(choosing, telling, strict=True)])


def _spread(what: str, seconds: list[float]) -> str:
    ordered = sorted(1000 * one for one in seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
    return f"| {what} | {fmean(ordered):.2f} | {p50:.2f} | {p99:.2f} |"


INTRODUCTION = """
### Switching: several nodes

`python -m benchmarks.switching nodes`. Each node is a machine as above, with the server's own cache; the front chooses
with `cluster/choice.py` and sees each node as it was up to half a second ago. As many requests a node and second as
above. Each node preloads to host memory the experts that are hashed to it, then others until that is full.

- round-robin, least-queue: the next node; the node with the fewest unanswered requests. hashed: the one node that the
  expert's name says.
- share: seconds count as blocked where no node generates. With several nodes that is rare, so "of each node" adds up
  the blocked seconds of every node by itself. It is stricter, and favours ways that give a node nothing to do.
- Means; for the others ± the standard error of their difference to ours. A share within 0.0005 is level.
"""


def texts() -> dict[str, Callable[[], str]]:
    """Key -> the text: of each number of nodes of each machine, and of the cost."""
    found = {f"{nodes} x {machine.key}": _text_of(machine, nodes) for machine in MACHINES for nodes in NODES}
    return {"introduction": lambda: INTRODUCTION, **found, "cost": lambda: "\n".join(cost_section())}


def _text_of(machine: NodeMachine, nodes: int) -> Callable[[], str]:
    return lambda: "\n".join(section(machine, nodes))
