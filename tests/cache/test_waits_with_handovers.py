"""With handovers each lease is granted within its bound: a request that is handed over once waits at most for two."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import ExpertUnavailable, Overloaded
from coe_server.simulation.simulator import run_virtually
from tests.cache.test_promises_on_cards import machines
from tests.cache.test_waits_with_faults import EXPERTS, ROUNDING, Stage, Waited, each_timing, play, traffics
from tests.examples import examples

HELD_SECONDS = 0.25


class HandingOver(Stage):
    """Each answer is held for a while. Then the next expert takes over, unless its queue is full or the chain ends."""

    at_most = 1
    chance = 0.5

    def __init__(self, machine, timings):
        super().__init__(machine, timings)
        self.handed = 0

    async def ask(self, name, length):
        for _ in range(self.at_most):
            second = EXPERTS[(EXPERTS.index(name) + 1) % len(EXPERTS)]
            if not await self._held(name, second):
                return
            name = second
        await super().ask(name, length)

    async def _held(self, name, second):
        """True if the second expert takes over."""
        arrived = self.clock()
        try:
            lease = await self.cache.lease(name)
        except (Overloaded, ExpertUnavailable):
            return False
        self.waits.append(Waited(name, self.clock() - arrived, "granted"))
        with lease, self.cache.foreseen(second, self.chance):
            await asyncio.sleep(HELD_SECONDS)
        hands_over = self.cache.may_wait(second, None)
        self.handed += hands_over
        return hands_over

    def played(self):
        assert self.handed, "no answer was handed over"
        return super().played()


class HandingOnTwice(HandingOver):
    at_most = 2
    chance = 1.0


@examples(20)
@given(machines(len(EXPERTS), most_cards=3), each_timing, traffics, st.sampled_from([HandingOver, HandingOnTwice]))
def test_with_handovers_each_lease_is_granted_within_its_bound(machine, timings, traffic, stage_of):
    found = run_virtually(play(machine, timings, traffic.requests, [], stage_of))
    for one in found.waits:
        assert one.seconds <= found.bounds[one.expert] + ROUNDING, one
