"""All promises of the cache on random machines of one to eight cards, with faults and cards that are lost.

`make check-long` tries two thousand of them.
"""

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import OURS, Limits
from coe_server.cache.seats import Card, candidate_seats
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier, bytes_in
from coe_server.engines.engine import Footprint
from coe_server.errors import EngineStartFailed, ExpertUnavailable
from coe_server.simulation.simulator import Scenario, SimulatedExpert, Timing, simulate
from tests.cache.fakes import FakeEngine, Memory
from tests.cache.machines import trace_of
from tests.cache.test_expert_cache import Faults, break_things, faults, one_request, requests, run, settle
from tests.examples import examples

QUICK = Limits(max_wait_seconds=0.002, queue_limit=1000, max_concurrency=2)
NAMES = "abcd"


@dataclass(frozen=True)
class Machine:
    sizes: tuple[int, ...]
    host: int
    footprints: tuple[Footprint, ...]
    seats: tuple[tuple[tuple[int, ...], ...], ...]  # of each expert

    @property
    def capacity(self):
        return Bytes(self.sizes, self.host)


def seats_of(sizes, width, allowed=None):
    """Those on which an expert of these cards could lie."""
    return candidate_seats([Card(index, size) for index, size in enumerate(sizes)], width, allowed)


@st.composite
def machines(draw, number=4, most_cards=8):
    """Equal or mixed cards, experts one to eight cards wide, some of them with a choice of cards."""
    sizes = tuple(draw(st.lists(st.integers(10, 32), min_size=1, max_size=most_cards)))
    if draw(st.booleans()):
        sizes = (sizes[0],) * len(sizes)
    footprints, seats = [], []
    for _ in range(number):
        able = [width for width in range(1, 9) if seats_of(sizes, width)]
        width = draw(st.sampled_from(able))
        seats.append(seats_of(sizes, width, draw(st.sampled_from([None, *seats_of(sizes, width)]))))
        most = max(min(sizes[card] for card in seat) for seat in seats[-1])
        asleep = draw(st.integers(0, 2))
        footprints.append(Footprint(draw(st.integers(max(1, asleep), most)), asleep, 2, draw(st.sampled_from([0, 8]))))
    return Machine(sizes, draw(st.integers(10, 60)), tuple(footprints), tuple(seats))


class OneMove(FakeEngine):
    """Notices a second move while one is under way."""

    under_way = False

    async def _move(self, call, device, host):
        self.memory.promise(not self.under_way, f"{self.name}: {call} beside another move")
        self.under_way = True
        try:
            await super()._move(call, device, host)
        finally:
            self.under_way = False


@asynccontextmanager
async def running(machine, limits=QUICK):
    memory = Memory(machine.capacity)
    engines = {
        name: OneMove(name, footprint, memory) for name, footprint in zip(NAMES, machine.footprints, strict=False)
    }
    experts = [
        Expert(name, engine, width=len(seats[0]), seats=seats)
        for (name, engine), seats in zip(engines.items(), machine.seats, strict=True)
    ]
    cache = ExpertCache(experts, memory.capacity, limits)
    conductor, seen = asyncio.create_task(cache.run()), Faults()
    try:
        yield cache, engines
    finally:
        logging.getLogger("coe_server").removeHandler(seen)
        for engine in engines.values():
            engine.calls.append("closing")
        conductor.cancel()
        with pytest.raises(asyncio.CancelledError):
            await conductor
        assert cache.ledger.used == Bytes()
        assert memory.broken_promises == []
        assert seen.messages == []


def lose(cache, engines, card):
    """As it happens: what runs there dies."""
    for slot in cache.slots.values():
        if slot.touches(card):
            engines[slot.name].die()
    cache.lose_card(card)


def exact(cache):
    """The ledger holds what stands where, nothing stands on a lost card, and no lease is held."""
    for slot in cache.slots.values():
        assert (slot.leases, len(slot.waiters)) == (0, 0)
        if slot.moving is None:
            assert cache.ledger.held(slot.name) == bytes_in(slot.engine.footprint, slot.tier, slot.seat)
            assert slot.tier is Tier.DISK or all(cache.ledger.capacity.on(card) > 0 for card in slot.seat)


def can_come(cache, name):
    slot, capacity = cache.slots[name], cache.ledger.capacity
    return slot.engine.footprint.host <= capacity.host and any(
        all(slot.engine.footprint.device_awake <= capacity.on(card) for card in seat) for seat in slot.expert.seats
    )


async def comes(cache, engines, name):
    """After all that happened it can be loaded, or is refused because no cards are left for it."""
    for engine in engines.values():
        engine.fail.clear()
    try:
        await cache.controls.load(name)
    except (ExpertUnavailable, EngineStartFailed):
        assert not can_come(cache, name)
        return
    await settle()


@examples(200)
@given(machines(), requests, faults, st.lists(st.tuples(st.integers(0, 7), st.integers(0, 8)), max_size=2))
def test_no_promise_is_broken_whatever_the_machine_the_traffic_and_the_faults(machine, traffic, broken, losses):
    async def story():
        async with running(machine) as (cache, engines):
            break_things(engines, broken)
            loop, tasks = asyncio.get_running_loop(), []
            for name, delay, hold, patience in traffic:
                tasks.append(asyncio.create_task(one_request(cache, engines[name], delay, hold)))
                if patience is not None:
                    loop.call_later(patience * 0.0002, tasks[-1].cancel)
            lost = {card: moment for card, moment in losses if card < len(machine.sizes)}
            for card, moment in lost.items():
                loop.call_later(moment * 0.0003, lose, cache, engines, card)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            bad = [one for one in outcomes if isinstance(one, Exception) and not isinstance(one, ExpertUnavailable)]
            assert bad == []
            if not broken and not lost and all(can_come(cache, name) for name in NAMES):
                assert "refused" not in outcomes
            await asyncio.sleep(0.0003 * 9)  # until the last card is lost
            await settle()
            for name in NAMES:
                await comes(cache, engines, name)
            exact(cache)

    run(story())


SHORT = Limits(max_wait_seconds=5, queue_limit=4, max_concurrency=2, max_generation_seconds=10)
seconds = st.sampled_from([0.1, 1.0, 8.0])


@st.composite
def scenarios(draw):
    machine = draw(machines(6))
    experts = tuple(
        SimulatedExpert(
            name,
            footprint,
            Timing(draw(seconds), draw(seconds), draw(seconds), draw(seconds), ttft_seconds=0, tokens_per_second=1),
            width=len(seats[0]),
            seats=seats,
        )
        for name, footprint, seats in zip("abcdef", machine.footprints, machine.seats, strict=True)
    )
    return Scenario(experts, machine.capacity, SHORT)


@st.composite
def played(draw):
    scenario = draw(scenarios())
    able = [one.name for one in scenario.experts if one.footprint.host <= scenario.capacity.host]
    one = st.tuples(st.integers(0, 200).map(lambda n: n / 2), st.sampled_from(able), st.integers(1, 10))
    return scenario, trace_of(*sorted(draw(st.lists(one, min_size=1, max_size=60))))


def all_within_their_bounds(found):
    for answer in found.answers:
        assert answer.waited <= found.wait_bounds[answer.expert] + 1e-6, answer


@examples(150)
@given(played())
def test_each_request_waits_no_longer_than_the_bound_of_its_experts_group(drawn):
    scenario, trace = drawn
    found = simulate(scenario, trace, OURS)
    assert len(found.answers) + found.refused == len(trace.requests)
    assert max(found.wait_bounds.values()) == found.wait_bound_seconds
    all_within_their_bounds(found)


@st.composite
def crowds(draw):
    """One wide expert asked for now and then, and single ones that are asked for all the time."""
    cards = draw(st.integers(2, 8))
    sizes, width = [draw(st.integers(11, 22))] * cards, draw(st.integers(2, cards))
    small = Footprint(device_awake=10, device_asleep=1, host_process=2, host_image=draw(st.sampled_from([0, 8])))
    timing = Timing(draw(seconds), draw(seconds), 1, 1, ttft_seconds=0, tokens_per_second=1)
    names = [f"s{at}" for at in range(draw(st.integers(cards, 2 * cards + 2)))]
    experts = [SimulatedExpert(name, small, timing, seats=seats_of(sizes, 1)) for name in names]
    experts.append(SimulatedExpert("wide", small, timing, width=width, seats=seats_of(sizes, width)))
    gap, tokens = draw(st.sampled_from([0.5, 1.0, 2.0])), draw(st.integers(2, 10))
    crowd = [(at * gap, draw(st.sampled_from(names)), tokens) for at in range(150)]
    host = 10 * draw(st.integers(len(names) // 2, len(names) + 2))
    scenario = Scenario(tuple(experts), Bytes(sizes, host), SHORT)
    return scenario, trace_of(*sorted([*crowd, *((at, "wide", 5) for at in (20.5, 40.5, 90.5))]))


@examples(40)
@given(crowds())
def test_a_wide_expert_waits_no_longer_than_its_bound_in_a_crowd_for_single_ones(drawn):
    scenario, trace = drawn
    found = simulate(scenario, trace, OURS)
    assert sum(answer.expert == "wide" for answer in found.answers) == 3
    all_within_their_bounds(found)
