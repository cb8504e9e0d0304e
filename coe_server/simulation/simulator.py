"""Runs the server's own cache under a virtual clock: real leases, plans and turns, with engines that only wait.

An engine serves up to `max_concurrency` answers at once at full speed. A request takes
`ttft_seconds + output_tokens / tokens_per_second` of its expert, at most `max_generation_seconds`; with a fan-out it
takes as many leases for that time. When no task is ready, the event loop jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits, Policy
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.engines.engine import EngineRequest, EngineResponse, Footprint, Seat
from coe_server.errors import DatasetError, Overloaded
from coe_server.events import EventLog, Kind
from coe_server.simulation.traces import Request, Trace


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of an expert's moves, and the speed of its answers."""

    start_seconds: float = 40.0
    wake_seconds: float = 0.4
    sleep_seconds: float = 0.3
    stop_seconds: float = 0.0
    ttft_seconds: float = 0.05
    tokens_per_second: float = 50.0

    def service_seconds(self, output_tokens: int) -> float:
        return self.ttft_seconds + output_tokens / self.tokens_per_second


@dataclass(frozen=True, slots=True)
class SimulatedExpert:
    """An expert of the simulation; the fields are those of `Expert`."""

    name: str
    footprint: Footprint
    timing: Timing = Timing()
    pin: Tier = Tier.DISK
    preload: Tier = Tier.DISK
    ttl_seconds: float | None = None
    width: int = 1
    seats: tuple[Seat, ...] = ((0,),)
    max_concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A machine and its experts."""

    experts: tuple[SimulatedExpert, ...]
    capacity: Bytes
    limits: Limits

    def service_seconds(self, expert: str, output_tokens: int) -> float:
        timing = next(one.timing for one in self.experts if one.name == expert)
        return min(timing.service_seconds(output_tokens), self.limits.max_generation_seconds)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered request; times in seconds since the start of the trace."""

    expert: str
    arrived: float
    granted: float
    finished: float
    score_lost: float = 0.0  # by choosing a resident expert
    wait_saved_seconds: float = 0.0  # predicted saving of that choice
    resident: bool = False  # another expert than the best was chosen because it was on the device
    node: str = ""  # that answered, where there are several

    @property
    def waited(self) -> float:
        return self.granted - self.arrived


@dataclass(frozen=True, slots=True)
class TimedMove:
    """One move; times in seconds since the start of the trace."""

    expert: str
    source: Tier
    target: Tier
    began: float
    ended: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """The result of a simulated trace."""

    answers: tuple[Answer, ...]
    moves: tuple[TimedMove, ...]
    switches: int
    refused: int
    wait_bound_seconds: float
    work_seconds: float  # sum of the solo service seconds of all requests, refused ones included
    first_tiers: Mapping[str, Tier] = field(default_factory=dict)  # at the start of the trace; default: disk
    wait_bounds: Mapping[str, float] = field(default_factory=dict)  # expert -> seconds; the longest is that of the run


def simulate(scenario: Scenario, trace: Trace, policy: Policy, tolerance: float = 0.0) -> Run:
    """Simulate `trace` under `policy`. The clock starts after preloading.

    `tolerance`: expected score that may be given up for a loaded expert. Raises DatasetError if the trace names an
    unknown expert.
    """
    require_known(trace, {expert.name for expert in scenario.experts})
    return run_virtually(_play(scenario, trace, policy, tolerance))


def require_known(trace: Trace, known: Collection[str]) -> None:
    """Raise DatasetError if the trace names another expert."""
    if strangers := [name for name in trace.experts if name not in known]:
        raise DatasetError(f"{trace.name}: there is no expert '{strangers[0]}'; known: {', '.join(sorted(known))}")


async def _play(scenario: Scenario, trace: Trace, policy: Policy, tolerance: float) -> Run:
    clock = asyncio.get_running_loop().time
    diary = Diary(clock)
    experts = [expert_of(one) for one in scenario.experts]
    cache = ExpertCache(experts, scenario.capacity, scenario.limits, diary, clock, policy)
    conductor = asyncio.create_task(cache.run())
    await cache.ready.wait()
    diary.begins()
    player = _Player(scenario, cache, diary, tolerance)
    try:
        async with asyncio.TaskGroup() as group:
            for request in trace.requests:
                await asyncio.sleep(max(0.0, request.arrival_seconds - diary.now))
                group.create_task(player.ask(request))
        bound, bounds = cache.bounds.seconds(), cache.bounds.by_expert()
    finally:
        conductor.cancel()
        with suppress(asyncio.CancelledError):
            await conductor
    work = sum(scenario.service_seconds(request.best, request.output_tokens) for request in trace.requests)
    moves, first = tuple(diary.moves), diary.first_tiers
    return Run(tuple(player.answers), moves, diary.switches, player.refused, bound, work, first, bounds)


class _Player:
    """Requests leases as the server does, and records the times."""

    def __init__(self, scenario: Scenario, cache: ExpertCache, diary: Diary, tolerance: float) -> None:
        self.answers: list[Answer] = []
        self.refused = 0
        self._scenario = scenario
        self._cache = cache
        self._diary = diary
        self._tolerance = tolerance
        self._timings = {expert.name: expert.timing for expert in scenario.experts}

    async def ask(self, request: Request) -> None:
        arrived = self._diary.now
        expert, lost, saved = routed(request, self._tolerance, self._prospect)
        try:
            lease = await self._cache.lease(expert, request.priority, request.fan_out)
        except Overloaded:
            self.refused += 1
            return
        with lease:
            granted = self._diary.now
            seconds = self._timings[expert].service_seconds(request.output_tokens)
            await asyncio.sleep(min(seconds, self._scenario.limits.max_generation_seconds))
            lease.answered()
        finished = self._diary.now
        self.answers.append(Answer(expert, arrived, granted, finished, lost, saved, expert != request.best))

    def _prospect(self, expert: str) -> Prospect:
        outlook = self._cache.waits.outlooks()[expert]
        return Prospect(outlook.residency, outlook.predicted_wait_seconds)


class Prospect(NamedTuple):
    """Where an expert is, and how long a request for it would wait."""

    residency: str
    wait_seconds: float


class Routed(NamedTuple):
    """The chosen expert, the score lost and the wait saved."""

    expert: str
    score_lost: float = 0.0
    wait_saved_seconds: float = 0.0


def routed(request: Request, tolerance: float, prospect: Callable[[str], Prospect]) -> Routed:
    """The best expert, or within the tolerance the best one that is loaded and saves waiting."""
    best = request.best
    if not request.scores or not tolerance:
        return Routed(best)
    floor, wait = request.scores[best] - tolerance, prospect(best).wait_seconds
    near = {name: prospect(name) for name, score in request.scores.items() if score >= floor}
    loaded = Tier.DEVICE.value
    sooner = [name for name, one in near.items() if one.residency == loaded and one.wait_seconds < wait]
    if not sooner or near[best].residency == loaded:
        return Routed(best)
    chosen = min(sooner, key=lambda name: (-request.scores[name], name))
    return Routed(chosen, request.scores[best] - request.scores[chosen], wait - near[chosen].wait_seconds)


class Diary(EventLog):
    """Records the cache's events with virtual times."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(keep=1)
        self.moves: list[TimedMove] = []
        self.switches = 0
        self.first_tiers: dict[str, Tier] = {}
        self._clock = clock
        self._zero = 0.0

    @property
    def now(self) -> float:
        return self._clock() - self._zero

    def begins(self) -> None:
        """Start the trace: preloading happened before time zero."""
        moves = [TimedMove(m.expert, m.source, m.target, 0.0, 0.0, 0) for m in self.moves]
        self.first_tiers = {move.expert: move.target for move in moves}
        self.moves, self.switches, self._zero = moves, 0, self._clock()

    def record(self, kind: Kind, **fields: Any) -> None:
        if kind == "move":
            seconds, now = fields["seconds"], self.now
            source, target = Tier(fields["from"]), Tier(fields["to"])
            self.moves.append(TimedMove(fields["expert"], source, target, now - seconds, now, fields["bytes"]))
        elif kind == "switch":
            self.switches += 1


class _TimedEngine:
    """An `Engine` (see `engine.py`) whose moves only wait."""

    def __init__(self, footprint: Footprint, timing: Timing) -> None:
        self.footprint = footprint
        self._timing = timing

    async def start(self, within_seconds: float | None = None, seat: Seat = (0,)) -> None:
        await asyncio.sleep(self._timing.start_seconds)

    async def sleep(self) -> None:
        await asyncio.sleep(self._timing.sleep_seconds)

    async def wake(self) -> None:
        await asyncio.sleep(self._timing.wake_seconds)

    async def stop(self, at_once: bool = False) -> None:
        await asyncio.sleep(self._timing.stop_seconds)

    async def died(self) -> str:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # never completes

    def send(self, request: EngineRequest) -> AbstractAsyncContextManager[EngineResponse]:
        raise AssertionError("the player waits for a simulated request itself")


def expert_of(one: SimulatedExpert) -> Expert:
    engine = _TimedEngine(one.footprint, one.timing)
    known = {
        "start": one.timing.start_seconds,
        "wake": one.timing.wake_seconds,
        "sleep": one.timing.sleep_seconds,
        "stop": one.timing.stop_seconds,
    }  # counted as measured
    return Expert(
        one.name,
        engine,
        one.pin,
        one.preload,
        one.ttl_seconds,
        costs=known,
        width=one.width,
        seats=one.seats,
        max_concurrency=one.max_concurrency,
    )


Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and advances only while every task waits; deterministic."""

    def __init__(self) -> None:
        self._jumps = _JumpingSelector()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now


class _JumpingSelector(selectors.SelectSelector):
    """Advances the clock instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "deadlock: every task waits for another one"
        self.now += max(0.0, timeout)
        return []


def run_virtually(story: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end under a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(story)
