"""How well experts are switched: every traffic profile x machine x policy under a virtual clock, beside the bound.

    python benchmarks/switching.py           the table, and the cost of deciding; written to docs/benchmarks.md
    python benchmarks/switching.py --quick   5 and 20 experts only, nothing written

No engine is started. See `coe simulate --help` for what is measured.
"""

from __future__ import annotations

import argparse
import logging
import platform
import re
import resource
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from coe_server.cache.comparison import Comparison, compare
from coe_server.cache.conductor import Conductor
from coe_server.cache.policy import OURS, POLICIES
from coe_server.cache.profiles import PROFILES, Profile, make_trace
from coe_server.cache.scenario import expert_names, made_up_scenario
from coe_server.cache.simulator import Run, simulate
from coe_server.cache.tiers import Tier

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/benchmarks.md"
BEGIN, END = "<!-- switching: begin -->", "<!-- switching: end -->"
SEED = 0
GOAL_OF_BOUND = 0.9
COLUMNS = (
    *("profile", "policy", "share", "of bound", "blocked s", "x bound", "wait mean s", "p95", "max"),
    *("makespan s", "switches", "TiB", "remarks"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """How many experts there are, fit on the device, and fit in host memory."""

    experts: int
    on_device: int
    in_host: int
    requests: int = 300

    def __str__(self) -> str:
        return f"{self.experts} experts, {self.on_device} on the device, {self.in_host} in host memory"


MACHINES = (Machine(5, 2, 5), Machine(20, 3, 20), Machine(5, 2, 3), Machine(20, 3, 10), Machine(150, 4, 75, 600))


def play(machine: Machine, profile: Profile) -> Comparison:
    names = expert_names(machine.experts)
    scenario = made_up_scenario(names, machine.on_device, machine.in_host)
    return compare(scenario, make_trace(profile, names, machine.requests, SEED), POLICIES.values())


def rows(machine: Machine, profile: Profile, found: Comparison) -> Iterator[str]:
    bound = found.bound
    for name, m in found.policies.items():
        remark = "" if m.bound_kept else f"breaks its bound of {m.wait_bound_seconds:,.0f} s"
        if m.refused:
            remark += f"{', ' if remark else ''}{m.refused} refused"
        cells = (
            *(profile, name, f"{m.serving_share:.3f}", f"{m.serving_share / bound.serving_share:.3f}"),
            f"{m.blocked_seconds:,.1f}",
            f"{m.blocked_seconds / bound.blocked_seconds:,.1f}" if bound.blocked_seconds else "-",
            *(f"{m.wait_mean:,.1f}", f"{m.wait_p95:,.1f}", f"{m.wait_max:,.1f}"),
            *(f"{m.makespan_seconds:,.0f}", str(m.switches), f"{m.bytes_moved / 2**40:,.1f}", remark),
        )
        yield f"| {' | '.join(cells)} |"
    end = f"{bound.blocked_seconds:,.1f} | | | | | | {bound.switches} | | |"
    yield f"| {profile} | bound | {bound.serving_share:.3f} | | {end}"


def verdicts(machine: Machine, found: dict[Profile, Comparison]) -> Iterator[str]:
    """Where ours misses a goal, by how much."""
    for profile, comparison in found.items():
        ours, bound = comparison.policies["coe"], comparison.bound
        if not ours.bound_kept:
            yield f"{profile}: ours breaks its own bound ({ours.wait_max:,.0f} s)"
        if machine.experts <= 20 and ours.serving_share < GOAL_OF_BOUND * bound.serving_share:
            yield f"{profile}: {ours.serving_share / bound.serving_share:.3f} of the bound, below {GOAL_OF_BOUND}"
        for name, other in comparison.policies.items():
            fair = other.bound_kept and other.refused <= ours.refused
            if fair and other.serving_share > ours.serving_share:
                yield f"{profile}: {name} serves {other.serving_share - ours.serving_share:.4f} more"


def section(machine: Machine) -> Iterator[str]:
    found: dict[Profile, Comparison] = {}
    for profile in PROFILES:
        print(f"{machine}: {profile}", file=sys.stderr, flush=True)
        found[profile] = play(machine, profile)
    limit = max(m.wait_bound_seconds for comparison in found.values() for m in comparison.policies.values())
    yield f"### {machine}"
    yield ""
    yield f"{machine.requests} requests a profile. Wait bound: {limit:,.0f} s."
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    for profile, comparison in found.items():
        yield from rows(machine, profile, comparison)
    yield ""
    missed = list(verdicts(machine, found))
    yield "Ours misses a goal here: " + "; ".join(missed) + "." if missed else "Ours meets every goal here."
    yield ""


class Watch:
    """Times the conductor's passes while a trace is played, and looks at the memory. Only for this benchmark."""

    def __init__(self, arrivals: list[float]) -> None:
        self.arrivals = arrivals
        self.passes = 0
        self.cost = [0.0] * len(arrivals)  # seconds of deciding from this request's arrival to the next one's
        self.resident: dict[int, float] = {}

    def run(self, play_it: Callable[[], Run]) -> Run:
        conduct = Conductor._conduct

        def timed(conductor: Conductor) -> None:
            began = time.thread_time()
            conduct(conductor)
            seconds = time.thread_time() - began
            at = max(0, bisect_right(self.arrivals, conductor._clock()) - 1)
            self.cost[at] += seconds
            self.passes += 1
            if at % 5000 == 0 and at not in self.resident:
                self.resident[at] = _resident_mib()

        Conductor._conduct = timed  # type: ignore[method-assign]
        try:
            found = play_it()
        finally:
            Conductor._conduct = conduct  # type: ignore[method-assign]
        self.resident[len(self.arrivals)] = _resident_mib()
        return found


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def cost_section(experts: int = 150, in_host: int = 75, requests: int = 20_000) -> Iterator[str]:
    """Nothing is preloaded, so that the trace's clock is the loop's."""
    names = expert_names(experts)
    made_up = made_up_scenario(names, 4, in_host)
    scenario = replace(made_up, experts=tuple(replace(expert, preload=Tier.DISK) for expert in made_up.experts))
    trace = make_trace("zipf", names, requests, SEED)
    watch = Watch([request.arrival_seconds for request in trace.requests])
    print(f"cost of deciding, {requests:,} requests", file=sys.stderr, flush=True)
    began = time.perf_counter()
    run = watch.run(lambda: simulate(scenario, trace, OURS))
    seconds = time.perf_counter() - began
    cost = sorted(watch.cost)
    mean, p50, p99 = (1000 * s for s in (sum(cost) / len(cost), cost[len(cost) // 2], cost[int(0.99 * len(cost))]))
    memory = ", ".join(f"{mib:.0f} MiB after {at:,}" for at, mib in watch.resident.items())
    yield (
        f"{experts} experts, {in_host} in host memory, {requests:,} requests (zipf), {run.refused:,} refused. "
        f"The conductor's passes from one arrival to the next (planner, scheduler, prefetch, beginning moves), "
        f"processor time: {mean:.2f} ms on average, p50 {p50:.2f} ms, p99 {p99:.2f} ms "
        f"({watch.passes / requests:.1f} passes a request). The whole run took {seconds:,.0f} s of wall clock. "
        f"Resident memory: {memory} requests, the records of all answers and moves included."
    )


def document(machines: tuple[Machine, ...]) -> str:
    lines = [
        "## Switching",
        "",
        "`python benchmarks/switching.py` plays made-up traffic through the server's own cache and scheduler under a",
        "virtual clock. Experts: 15 GiB, start 40 s, wake 0.4 s, sleep 0.3 s, 50 tokens/s; a request every 2 s of 128",
        "tokens on average; what fits in host memory is preloaded to it. share: W / (W + blocked), W the seconds all",
        "answers take by themselves, blocked the seconds in which somebody waits and nobody generates. The bound is",
        "proven, not reached: who reached it would know the trace, bring experts before they are asked for and serve",
        "one request after the other to hide moves. Its switches are a bound of their own. FIFO, LRU and LFU obey the",
        "same planner and ledger; LRU and LFU collate.",
        "",
    ]
    for machine in machines:
        lines += section(machine)
    lines += [
        "### The cost of deciding",
        "",
        f"One process, Python {platform.python_version()}.",
        "",
        *cost_section(),
        "",
    ]
    return "\n".join(lines)


def write(text: str) -> None:
    old = DOCUMENT.read_text() if DOCUMENT.exists() else "# Benchmarks\n\nWhat was measured, and with which command.\n"
    block = f"{BEGIN}\n{text}\n{END}\n"
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END) + "\n", re.DOTALL)
    new = pattern.sub(lambda _: block, old) if pattern.search(old) else f"{old}\n{block}"
    DOCUMENT.write_text(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    logging.disable(logging.WARNING)
    if quick:
        print("\n".join(line for machine in MACHINES[:4] for line in section(machine)))
        return
    text = document(MACHINES)
    print(text)
    write(text)


if __name__ == "__main__":
    main()
