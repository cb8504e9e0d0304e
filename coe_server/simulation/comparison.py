"""Pure: compares policies on one trace, with the offline bound. Time is virtual."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from coe_server.cache.policy import OURS, Policy
from coe_server.cache.tiers import Tier
from coe_server.simulation.nodes import Rule, simulate_nodes
from coe_server.simulation.offline_bound import Bringing, Job, lower_bound
from coe_server.simulation.offline_search import Board, Player, fewest_blocked_seconds
from coe_server.simulation.simulator import Run, Scenario, SimulatedExpert, simulate
from coe_server.simulation.traces import Trace

EXACT_UP_TO_REQUESTS = 12


@dataclass(frozen=True, slots=True)
class Bound:
    """The offline bound on this trace; `exact` if a schedule reaches it.

    `switches` is a separate lower bound: the number of requested experts less those that fit on the device together.
    """

    blocked_seconds: float
    serving_share: float
    switches: int
    exact: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "serving_share": self.serving_share,
            "switches": self.switches,
            "blocked_seconds": self.blocked_seconds,
            "exact": self.exact,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """One trace under several policies."""

    trace: Trace
    work_seconds: float
    bound: Bound
    runs: Mapping[str, Run]
    policies: Mapping[str, Measures]

    def as_json(self) -> dict[str, Any]:
        """The JSON of `coe simulate --json`, a stable format."""
        return {
            "trace": {
                "name": self.trace.name,
                "requests": len(self.trace.requests),
                "experts": len(self.trace.experts),
                "seconds": self.trace.requests[-1].arrival_seconds,
                "work_seconds": self.work_seconds,
            },
            "bound": self.bound.as_json(),
            "policies": {name: measures.as_json() for name, measures in self.policies.items()},
        }


def compare(
    scenario: Scenario,
    trace: Trace,
    policies: Iterable[Policy],
    tolerance: float = 0.0,
    done: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Simulate the trace under each policy; `done` is called with the name of each finished one.

    Only the policy `coe` prefetches.
    """
    runs: dict[str, Run] = {}
    for policy in policies:
        limits = scenario.limits if policy is OURS else replace(scenario.limits, prefetch=False)
        runs[policy.name] = simulate(replace(scenario, limits=limits), trace, policy, tolerance)
        done(policy.name)
    measures = {name: measure(run) for name, run in runs.items()}
    work = next(iter(runs.values())).work_seconds
    first = next(iter(runs.values())).first_tiers
    return Comparison(trace, work, offline_bound(scenario, trace, first, measures, tolerance), runs, measures)


def compare_nodes(
    nodes: Mapping[str, Scenario],
    trace: Trace,
    rules: Mapping[str, Rule],
    tolerance: float = 0.0,
    done: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Simulate the trace on these nodes under each rule of the front. No bound below 1 is proven for several nodes."""
    runs: dict[str, Run] = {}
    for name, rule in rules.items():
        runs[name] = simulate_nodes(nodes, trace, rule, tolerance)
        done(name)
    measures = {name: measure(run) for name, run in runs.items()}
    work = next(iter(runs.values())).work_seconds
    return Comparison(trace, work, Bound(0.0, 1.0, 0, exact=False), runs, measures)


def offline_bound(
    scenario: Scenario,
    trace: Trace,
    first_tiers: Mapping[str, Tier],
    measures: Mapping[str, Measures],
    tolerance: float = 0.0,
) -> Bound:
    """The bound under the wait limit of these runs; exact for short traces, if the search ends in time.

    `first_tiers`: the experts' tiers at the start of the trace; default: disk.
    """
    if tolerance and any(request.scores for request in trace.requests):
        return _bound(0.0, 0, False, scenario, trace)  # a request's expert is open: nothing stronger is proven
    jobs = tuple(
        Job(request.arrival_seconds, request.best, scenario.service_seconds(request.best, request.output_tokens))
        for request in trace.requests
    )
    asked = {expert.name: expert for expert in scenario.experts if expert.name in {job.expert for job in jobs}}
    bringing = {name: _bringing(expert, first_tiers.get(name, Tier.DISK)) for name, expert in asked.items()}
    blocked = lower_bound(jobs, bringing, scenario.capacity.device)
    switches = max(0, len(asked) - _most_together(asked.values(), scenario.capacity.device))
    kept = [m for m in measures.values() if m.bound_kept and not m.refused]
    fans_out = any(request.fan_out > 1 for request in trace.requests)  # the search admits one answer per request
    several_cards = len(scenario.capacity.cards) > 1  # and knows one device
    if len(jobs) > EXACT_UP_TO_REQUESTS or not kept or fans_out or several_cards:
        return _bound(blocked, switches, False, scenario, trace)
    reached = min(m.blocked_seconds for m in kept)
    limit = max(m.wait_bound_seconds for m in kept)
    places = scenario.limits.max_concurrency
    players = {name: _player(expert, first_tiers.get(name, Tier.DISK), places) for name, expert in asked.items()}
    board = Board(jobs, players, scenario.capacity, limit)
    exact = fewest_blocked_seconds(board, reached) if blocked < reached else reached
    return _bound(blocked if exact is None else exact, switches, exact is not None, scenario, trace)


def _bound(blocked: float, switches: int, exact: bool, scenario: Scenario, trace: Trace) -> Bound:
    work = sum(scenario.service_seconds(request.best, request.output_tokens) for request in trace.requests)
    return Bound(blocked, serving_share(work, blocked), switches, exact)


def _bringing(expert: SimulatedExpert, begins: Tier) -> Bringing:
    seconds = {
        Tier.DEVICE: 0.0,
        Tier.HOST: min(expert.timing.wake_seconds, expert.timing.start_seconds),
        Tier.DISK: expert.timing.start_seconds,
    }
    return Bringing(seconds[begins], begins is Tier.DISK, expert.footprint.device_awake)


def _player(expert: SimulatedExpert, begins: Tier, places: int) -> Player:
    timing = expert.timing
    return Player(
        expert.footprint,
        begins,
        expert.pin,
        timing.start_seconds,
        timing.wake_seconds,
        timing.sleep_seconds,
        timing.stop_seconds,
        expert.max_concurrency or places,
    )


def _most_together(experts: Iterable[SimulatedExpert], device_bytes: int) -> int:
    number = used = 0
    for size in sorted(expert.footprint.device_awake for expert in experts):
        used += size
        number += used <= device_bytes
    return number


Interval = tuple[float, float]  # from, to


@dataclass(frozen=True, slots=True)
class Measures:
    """The figures of one policy on one trace: seconds, bytes, counts."""

    switches: int
    serving_share: float
    blocked_seconds: float
    makespan_seconds: float
    wait_mean: float
    wait_p95: float
    wait_max: float
    wait_bound_seconds: float
    bytes_moved: int
    refused: int
    resident_choices: int
    score_lost: float
    wait_saved_seconds: float

    @property
    def bound_kept(self) -> bool:
        return self.wait_max <= self.wait_bound_seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "switches": self.switches,
            "serving_share": self.serving_share,
            "blocked_seconds": self.blocked_seconds,
            "makespan_seconds": self.makespan_seconds,
            "wait_seconds": {"mean": self.wait_mean, "p95": self.wait_p95, "max": self.wait_max},
            "wait_bound_seconds": self.wait_bound_seconds,
            "wait_bound_kept": self.bound_kept,
            "bytes_moved": self.bytes_moved,
            "refused": self.refused,
            "resident": {
                "choices": self.resident_choices,
                "score_lost": self.score_lost,
                "wait_saved_seconds": self.wait_saved_seconds,
            },
        }


def measure(run: Run) -> Measures:
    """The figures of one run.

    `serving_share` is W / (W + blocked). W: sum of the solo service seconds of all requests. blocked: seconds in which
    some request is unfinished and none is generating. Bytes count once, on the way to the device. p95 is by nearest
    rank.
    """
    blocked = blocked_seconds(run)
    waits = sorted(answer.waited for answer in run.answers) or [0.0]
    return Measures(
        switches=run.switches,
        serving_share=serving_share(run.work_seconds, blocked),
        blocked_seconds=blocked,
        makespan_seconds=max((answer.finished for answer in run.answers), default=0.0),
        wait_mean=sum(waits) / len(waits),
        wait_p95=waits[ceil(0.95 * len(waits)) - 1],
        wait_max=waits[-1],
        wait_bound_seconds=run.wait_bound_seconds,
        bytes_moved=sum(move.size_bytes for move in run.moves if move.target is Tier.DEVICE),
        refused=run.refused,
        resident_choices=sum(answer.resident for answer in run.answers),
        score_lost=sum(answer.score_lost for answer in run.answers),
        wait_saved_seconds=sum(answer.wait_saved_seconds for answer in run.answers),
    )


def blocked_seconds(run: Run) -> float:
    """Seconds in which some request is unfinished and none is generating."""
    unfinished = covered_seconds((answer.arrived, answer.finished) for answer in run.answers)
    generating = covered_seconds((answer.granted, answer.finished) for answer in run.answers)
    return max(0.0, unfinished - generating)


def serving_share(work_seconds: float, blocked: float) -> float:
    return work_seconds / (work_seconds + blocked) if work_seconds else 1.0


def covered_seconds(intervals: Iterable[Interval]) -> float:
    """The length of the intervals' union."""
    covered, end = 0.0, float("-inf")
    for begins, ends in sorted(intervals):
        covered += max(0.0, ends - max(begins, end))
        end = max(end, ends)
    return covered
