"""Requests that wait while experts come, change and go keep the bound that was promised; under a virtual clock."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.slot import Expert
from coe_server.cache.turnover import Turnover
from coe_server.cache.wait_bound import turn_seconds
from coe_server.errors import ExpertUnavailable, NoRoom, Overloaded, UnknownModel
from coe_server.simulation.simulator import run_virtually
from tests.cache.test_promises_on_cards import machines
from tests.cache.test_waits_with_faults import (
    EXPERTS,
    LIMITS,
    ROUNDING,
    Stage,
    TimedEngine,
    costs,
    each_timing,
    traffics,
)
from tests.examples import examples


@dataclass
class Waiting:
    """A request: the bound of its expert when it came, and the least one when a turnover began while it waited."""

    expert: str
    arrived: float
    bound: float
    promised: float | None = None
    seconds: float | None = None


class TurningStage(Stage):
    """A cache whose experts turn over; each keeps its timing."""

    def __init__(self, machine, timings):
        super().__init__(machine, timings)
        self.machine, self.timings = machine, dict(zip(EXPERTS, timings, strict=True))
        self.seats = dict(zip(EXPERTS, machine.seats, strict=True))
        self.asked = []
        self.turned = 0

    async def ask(self, name, length):
        if name not in self.cache.slots or self.cache.slots[name].leaves:
            return
        one = Waiting(name, self.clock(), self.cache.bounds.by_expert()[name])
        self.asked.append(one)
        with suppress(Overloaded, ExpertUnavailable, UnknownModel):
            with await self.cache.lease(name) as lease:
                one.seconds = self.clock() - one.arrived
                await asyncio.sleep(length)
                lease.answered()
            return
        self.asked.remove(one)

    def turn(self, kind, name):
        slot = self.cache.slots.get(name)
        there = slot is not None and not slot.leaves
        bounds = self.cache.bounds.by_expert()
        engine = TimedEngine(name, self.engines[name].footprint, self.timings[name], self.lost)
        seats = self.seats[name]
        new = Expert(name, engine, width=len(seats[0]), seats=seats, costs=costs(self.timings[name]))
        with suppress(NoRoom):
            if not there:
                self.cache.roster.take_over(Turnover(added=(new,)))
            elif kind == "change":
                self.cache.roster.take_over(Turnover(changed=(new,)))
            else:
                self.cache.roster.take_over(Turnover(removed=(name,)))
            self.turned += 1
            for one in self.asked:
                if one.seconds is None:
                    one.promised = min(one.promised or bounds[one.expert], bounds[one.expert])


async def play(machine, timings, requests, turns):
    stage = TurningStage(machine, timings)
    conductor = asyncio.create_task(stage.cache.run())
    try:
        async with asyncio.TaskGroup() as group:
            for at, kind, name in turns:
                asyncio.get_running_loop().call_at(at, stage.turn, kind, name)
            for at, name, length in requests:
                await asyncio.sleep(max(0.0, at - stage.clock()))
                group.create_task(stage.ask(name, length))
        return stage
    finally:
        conductor.cancel()
        with suppress(asyncio.CancelledError):
            await conductor


turns = st.lists(
    st.tuples(st.floats(0.0, 60.0), st.sampled_from(["change", "change", "leave"]), st.sampled_from(EXPERTS)),
    min_size=1,
    max_size=8,
)


@examples(30)
@given(machines(len(EXPERTS), most_cards=3), each_timing, traffics, turns)
def test_a_request_that_waits_keeps_the_bound_that_it_was_promised(machine, timings, traffic, turns):
    found = run_virtually(play(machine, timings, traffic.requests, turns))
    a_turn_and_a_stop = turn_seconds(LIMITS) + max(one.stop_seconds for one in timings)
    for one in found.asked:
        assert one.seconds is not None
        if one.promised is not None:
            assert one.seconds <= one.promised + ROUNDING, one
        assert one.seconds <= one.bound + a_turn_and_a_stop + ROUNDING, one
