"""No request waits longer than its bound and what the faults meanwhile cost, on machines of one to eight cards.

Starts, wakes and sleeps that fail, engines that die in use, and cards that are lost; under a virtual clock. The traffic
is denser than most machines can serve, and longer than the bound: without deadlines some requests exceed it.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits
from coe_server.cache.slot import Expert
from coe_server.cache.wait_bound import turn_seconds
from coe_server.errors import CardLost, EngineError, EngineStartFailed, ExpertUnavailable, Overloaded
from coe_server.simulation.simulator import Timing, run_virtually
from tests.cache.test_promises_on_cards import machines
from tests.examples import examples

EXPERTS = "abcdef"
LIMITS = Limits(max_wait_seconds=2, queue_limit=4, max_concurrency=2, max_generation_seconds=2)
REQUESTS = 400
MOST = 0.7
ROUNDING = 1e-6


class TimedEngine:
    """Its moves take their time, and fail when told to. A start on a lost card finds that it is gone."""

    def __init__(self, name, footprint, timing, lost):
        self.name = name
        self.footprint = footprint
        self.fails = []  # the next moves of these kinds fail, at their end
        self.faults = 0  # those that had an effect
        self._timing = timing
        self._lost = lost  # cards
        self._died = asyncio.Event()

    async def start(self, within_seconds=None, seat=(0,)):
        if gone := self._lost.intersection(seat):
            error = CardLost("the GPU is lost")
            error.index = min(gone)
            raise error
        self._died = asyncio.Event()
        await self._move("start", self._timing.start_seconds, EngineStartFailed)

    async def sleep(self):
        await self._move("sleep", self._timing.sleep_seconds, EngineError)

    async def wake(self):
        await self._move("wake", self._timing.wake_seconds, EngineError)

    async def stop(self, at_once=False):
        await asyncio.sleep(self._timing.stop_seconds)

    async def died(self):
        await self._died.wait()
        return f"engine '{self.name}' was killed"

    def send(self, request):
        raise AssertionError("no answer takes so long that its engine is doubted")

    def die(self):
        self.faults += not self._died.is_set()
        self._died.set()

    async def _move(self, kind, length, error):
        await asyncio.sleep(length)
        if kind in self.fails:
            self.fails.remove(kind)
            self.faults += 1
            raise error(f"{self.name} failed to {kind}")
        if self._died.is_set():
            raise error(f"{self.name} died")


@dataclass(frozen=True)
class Fault:
    at: float
    kind: str  # start, wake, sleep: the next one fails; die; lose: a card, with what is on it
    expert: str
    card: int


@dataclass(frozen=True)
class Waited:
    """How long a request waited until it was granted, or refused because its expert had failed."""

    expert: str
    seconds: float
    outcome: str


@dataclass(frozen=True)
class Played:
    waits: tuple[Waited, ...]
    bounds: dict[str, float]
    faults: int  # those that had an effect
    fault_seconds: float  # the longest turn and switch: what one of them may cost


class Stage:
    """A cache on such a machine, and what happens to it."""

    def __init__(self, machine, timings):
        self.clock = asyncio.get_running_loop().time
        self.lost, self.waits = set(), []
        self.engines = {
            name: TimedEngine(name, footprint, timing, self.lost)
            for name, footprint, timing in zip(EXPERTS, machine.footprints, timings, strict=True)
        }
        experts = [
            Expert(name, self.engines[name], width=len(seats[0]), seats=seats, costs=costs(timing))
            for name, seats, timing in zip(EXPERTS, machine.seats, timings, strict=True)
        ]
        self.cache = ExpertCache(experts, machine.capacity, LIMITS, clock=self.clock)

    async def ask(self, name, length):
        arrived = self.clock()
        try:
            lease = await self.cache.lease(name)
        except Overloaded:
            return
        except ExpertUnavailable:
            self.waits.append(Waited(name, self.clock() - arrived, "refused"))
            return
        self.waits.append(Waited(name, self.clock() - arrived, "granted"))
        with lease, suppress(TimeoutError):
            await asyncio.wait_for(lease.gone.wait(), length)
            return
        lease.answered()

    def happens(self, fault):
        if fault.kind == "lose":
            self.lose(fault.card)
        elif fault.kind == "die":
            self.engines[fault.expert].die()
        else:
            self.engines[fault.expert].fails.append(fault.kind)

    def lose(self, card):
        self.lost.add(card)
        for slot in self.cache.slots.values():
            if slot.touches(card):
                self.engines[slot.name].die()
        self.cache.lose_card(card)

    def played(self):
        had_effect = len(self.lost) + sum(engine.faults for engine in self.engines.values())
        slowest = max(group.switch_seconds + group.start_elsewhere_seconds for group in self.cache.bounds.groups)
        bounds = self.cache.bounds.by_expert()
        return Played(tuple(self.waits), bounds, had_effect, turn_seconds(LIMITS) + slowest)


async def play(machine, timings, requests, faults, stage_of=Stage):
    stage = stage_of(machine, timings)
    conductor = asyncio.create_task(stage.cache.run())
    try:
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                asyncio.get_running_loop().call_at(fault.at, stage.happens, fault)
            for at, name, length in requests:
                await asyncio.sleep(max(0.0, at - stage.clock()))
                group.create_task(stage.ask(name, length))
        return stage.played()
    finally:
        conductor.cancel()
        with suppress(asyncio.CancelledError):
            await conductor


def costs(timing):
    return {
        "start": timing.start_seconds,
        "wake": timing.wake_seconds,
        "sleep": timing.sleep_seconds,
        "stop": timing.stop_seconds,
    }


@dataclass(frozen=True)
class Traffic:
    """Requests that come faster than most machines answer them; each as (arrival, expert, seconds of the answer)."""

    requests: tuple[tuple[float, str, float], ...]

    @classmethod
    def drawn(cls, seed, gap, hot):
        """`hot`: an expert that gets most of them."""
        random, at, made = Random(seed), 0.0, []
        for _ in range(REQUESTS):
            at += random.expovariate(1 / gap)
            expert = hot if random.random() < MOST else random.choice(EXPERTS)
            made.append((at, expert, random.choice([0.5, 1.0, 2.0, 2.0])))
        return cls(tuple(made))

    def __repr__(self):
        return f"{self.requests[0]} to {self.requests[-1]}"


seconds = st.sampled_from([0.1, 0.5, 2.0])
timings = st.builds(Timing, st.sampled_from([1.0, 4.0]), seconds, seconds, seconds, ttft_seconds=st.just(0))
traffics = st.builds(
    Traffic.drawn, st.integers(0, 2**32), st.sampled_from([0.1, 0.25, 0.5, 1.0]), st.sampled_from(EXPERTS)
)
faults = st.lists(
    st.builds(
        Fault,
        st.floats(0.0, 100.0),
        st.sampled_from(["start", "wake", "sleep", "die", "lose"]),
        st.sampled_from(EXPERTS),
        st.integers(0, 7),
    ),
    max_size=6,
)


each_timing = st.lists(timings, min_size=len(EXPERTS), max_size=len(EXPERTS))


@examples(30)
@given(machines(len(EXPERTS), most_cards=3), each_timing, traffics)
def test_in_dense_traffic_each_request_waits_no_longer_than_its_bound(machine, timings, traffic):
    found = run_virtually(play(machine, timings, traffic.requests, []))
    assert found.waits, "some are let in at once"
    for one in found.waits:
        assert one.seconds <= found.bounds[one.expert] + ROUNDING, one


@examples(30)
@given(machines(len(EXPERTS)), each_timing, traffics, faults)
def test_each_fault_costs_a_request_at_most_a_turn_and_a_switch(machine, timings, traffic, faults):
    faults = [one for one in faults if one.kind != "lose" or one.card < len(machine.sizes)]
    found = run_virtually(play(machine, timings, traffic.requests, faults))
    for one in found.waits:
        assert one.seconds <= found.bounds[one.expert] + found.faults * found.fault_seconds + ROUNDING, one
