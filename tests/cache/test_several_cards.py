"""All promises on machines with one to eight cards: random traffic, faults and lost cards, and bounded waits."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import OURS, Limits
from coe_server.cache.seats import Card, candidate_seats
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier, bytes_in
from coe_server.engines.engine import Footprint
from coe_server.errors import ExpertUnavailable
from coe_server.simulation.simulator import Scenario, SimulatedExpert, Timing, simulate
from tests.cache.fakes import FakeEngine, Memory
from tests.cache.machines import trace_of
from tests.cache.test_expert_cache import Faults, break_things, faults, one_request, requests, run, settle
from tests.examples import examples

SMALL = Footprint(device_awake=10, device_asleep=1, host_process=2, host_image=8)
QUICK = Limits(max_wait_seconds=0.002, queue_limit=1000, max_concurrency=2)
TIMING = Timing(8, 2, 1, 1, ttft_seconds=0, tokens_per_second=1)


def seats_of(sizes, width):
    return candidate_seats([Card(index, size) for index, size in enumerate(sizes)], width)


@asynccontextmanager
async def running(sizes, host, widths, limits=QUICK, footprint=SMALL, **options):
    """Experts a, b, c, ... of these widths on cards of these sizes."""
    memory = Memory(Bytes(sizes, host))
    engines = {name: FakeEngine(name, footprint, memory) for name in "abcdefgh"[: len(widths)]}
    experts = [
        Expert(name, engine, width=width, seats=seats_of(sizes, width), **options.get(name, {}))
        for (name, engine), width in zip(engines.items(), widths, strict=True)
    ]
    cache = ExpertCache(experts, memory.capacity, limits)
    conductor, seen = asyncio.create_task(cache.run()), Faults()
    try:
        yield cache, engines
    finally:
        logging.getLogger("coe_server").removeHandler(seen)
        for engine in engines.values():
            engine.gate.set()
            engine.calls.append("closing")
        conductor.cancel()
        with pytest.raises(asyncio.CancelledError):
            await conductor
        assert cache.ledger.used == Bytes()
        assert memory.broken_promises == []
        assert seen.messages == []


def test_experts_on_different_cards_serve_beside_each_other():
    async def story():
        async with running([10, 10], 99, [1, 1]) as (cache, engines):
            with await cache.lease("a"), await cache.lease("b"):
                assert {engines["a"].seat, engines["b"].seat} == {(0,), (1,)}
                assert cache.ledger.used == Bytes((10, 10), 20)

    run(story())


def test_what_is_preloaded_to_host_memory_lies_beside_what_is_preloaded_to_the_device():
    async def story():
        asleep = {name: {"preload": Tier.HOST} for name in "bcde"}
        where = {"a": {"preload": Tier.DEVICE}, **asleep}
        async with running([15] * 4, 100, [2, 1, 1, 1, 1], **where) as (cache, _):
            await cache.ready.wait()
            assert {name: slot.tier for name, slot in cache.slots.items()} == {
                "a": Tier.DEVICE,
                **dict.fromkeys(asleep, Tier.HOST),
            }
            seats = sorted(cache.slots[name].seat for name in asleep)
            assert not {card for seat in seats for card in seat} & set(cache.slots["a"].seat)
            assert len(set(seats)) == 2, "on the two other cards"

    run(story())


def test_a_wide_expert_comes_though_single_ones_are_asked_for_all_the_time():
    async def story():
        async with running([11, 11], 99, [1, 1, 2]) as (cache, engines):
            stop = asyncio.Event()

            async def ask(name):
                while not stop.is_set():
                    with await cache.lease(name):
                        await asyncio.sleep(0.001)

            crowd = [asyncio.create_task(ask(name)) for name in "aabb"]
            await asyncio.sleep(0.01)
            with await cache.lease("c"):
                assert engines["c"].seat == (0, 1)
            stop.set()
            await asyncio.gather(*crowd)

    run(story())


def test_a_sleeper_is_started_anew_on_another_card_while_its_own_is_busy():
    async def story():
        async with running([11, 11], 99, [1, 1]) as (cache, engines):
            (await cache.lease("a")).release()
            first = engines["a"].seat
            cache.slots["b"].change(seats=(first,))  # it has no other card
            with await cache.lease("b"):
                assert engines["a"].calls == ["start", "sleep"]
                (await cache.lease("a")).release()
            assert engines["a"].calls == ["start", "sleep", "stop", "start"]
            assert engines["a"].seat != first

    run(story())


def test_what_is_on_a_lost_card_is_stopped_and_comes_back_on_another():
    async def story():
        async with running([10, 10], 99, [1]) as (cache, engines):
            lease = await cache.lease("a")
            lost = engines["a"].seat[0]
            cache.lose_card(lost)
            await asyncio.wait_for(lease.gone.wait(), 30)
            lease.release()
            (await cache.lease("a")).release()
            assert engines["a"].seat == (1 - lost,)
            assert engines["a"].calls == ["start", "stop", "start"]

    run(story())


def test_a_pinned_expert_leaves_the_cards_that_a_wider_pinned_one_needs():
    async def story():
        options = {name: {"pin": Tier.DEVICE, "preload": Tier.DEVICE} for name in "abc"}
        async with running([10] * 4, 99, [1, 1, 2], **options) as (cache, engines):
            await cache.ready.wait()
            assert {engines[name].seat for name in "abc"} == {(0, 1), (2,), (3,)}

    run(story())


@st.composite
def machines(draw):
    sizes = draw(st.lists(st.integers(10, 32), min_size=1, max_size=8))
    if draw(st.booleans()):
        sizes = [sizes[0]] * len(sizes)
    widths = []
    for _ in range(4):
        able = [width for width in range(1, 9) if seats_of(sizes, width)]
        widths.append(draw(st.sampled_from(able)))
    return sizes, widths, draw(st.integers(10, 60)), draw(st.one_of(st.none(), st.integers(0, len(sizes) - 1)))


@examples(60)
@given(machines(), requests, faults)
def test_under_random_traffic_faults_and_lost_cards_no_promise_is_broken(machine, traffic, broken):
    """No card over its capacity, no leased expert moved, no lease left, the ledger exact."""
    sizes, widths, host, lost = machine

    async def story():
        async with running(sizes, host, widths) as (cache, engines):
            break_things(engines, broken)
            tasks = []
            for name, delay, hold, patience in traffic:
                tasks.append(asyncio.create_task(one_request(cache, engines[name], delay, hold)))
                if patience is not None:
                    asyncio.get_running_loop().call_later(patience * 0.0002, tasks[-1].cancel)
            if lost is not None:
                tasks.append(asyncio.create_task(lose_soon(cache, engines, lost)))
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            bad = [one for one in outcomes if isinstance(one, Exception) and not isinstance(one, ExpertUnavailable)]
            assert bad == []
            assert broken or lost is not None or "refused" not in outcomes
            await settle()
            for slot in cache.slots.values():
                assert (slot.leases, len(slot.waiters)) == (0, 0)
                if slot.moving is None:
                    assert cache.ledger.held(slot.name) == bytes_in(slot.engine.footprint, slot.tier, slot.seat)
                    assert lost is None or not stands_on(slot, lost, cache)

    run(story())


def test_a_card_that_a_start_finds_lost_is_left_and_its_expert_starts_on_another():
    async def story():
        async with running([10, 10], 100, [1, 1]) as (cache, engines):
            engines["a"].lost_card = 0
            with await cache.lease("a"):
                assert engines["a"].seat == (1,)
            assert cache.ledger.capacity.cards == (0, 10)
            assert next(one for one in cache.status() if one.name == "a").failure is None, "it is not its failure"

    run(story())


async def lose_soon(cache, engines, card):
    await asyncio.sleep(0.001)
    lose(cache, engines, card)


def lose(cache, engines, card):
    """As it happens: what runs there dies."""
    for slot in cache.slots.values():
        if slot.touches(card):
            engines[slot.name].die()
    cache.lose_card(card)


def stands_on(slot, lost, cache):
    """It stands on a card that was lost although the cache has seen the loss."""
    return cache.ledger.capacity.on(lost) == 0 and slot.touches(lost)


@st.composite
def scenarios(draw):
    """Machines for the simulator: experts of several widths, host memory for all or for half of them."""
    sizes = [draw(st.sampled_from([10, 11, 22]))] * draw(st.integers(1, 8))
    number = draw(st.integers(2, 6))
    able = [width for width in range(1, 9) if seats_of(sizes, width)]
    experts = []
    for name in "abcdef"[:number]:
        width = draw(st.sampled_from(able))
        experts.append(SimulatedExpert(name, SMALL, TIMING, width=width, seats=seats_of(sizes, width)))
    limits = Limits(
        max_wait_seconds=draw(st.sampled_from([1.0, 20.0])), queue_limit=4, max_concurrency=2, max_generation_seconds=10
    )
    return Scenario(tuple(experts), Bytes(sizes, 10 * draw(st.integers(max(1, number // 2), number))), limits)


@st.composite
def played(draw, longest=40):
    scenario = draw(scenarios())
    names = [one.name for one in scenario.experts]
    one = st.tuples(st.integers(0, 200).map(lambda n: n / 2), st.sampled_from(names), st.integers(1, 10))
    return scenario, trace_of(*sorted(draw(st.lists(one, min_size=1, max_size=longest))))


@examples(80)
@given(played())
def test_no_request_waits_longer_than_the_bound_whatever_the_widths(drawn):
    scenario, trace = drawn
    found = simulate(scenario, trace, OURS)
    assert len(found.answers) + found.refused == len(trace.requests)
    for answer in found.answers:
        assert answer.waited <= found.wait_bound_seconds + 1e-6


@pytest.mark.parametrize("cards", [2, 4, 8])
def test_a_wide_expert_waits_no_longer_than_the_bound_while_single_ones_keep_every_card_busy(cards):
    sizes = [11] * cards
    singles = [SimulatedExpert(f"s{at}", SMALL, TIMING, seats=seats_of(sizes, 1)) for at in range(cards + 2)]
    wide = SimulatedExpert("wide", SMALL, TIMING, width=cards, seats=seats_of(sizes, cards))
    limits = Limits(max_wait_seconds=20, queue_limit=4, max_concurrency=2, max_generation_seconds=10)
    scenario = Scenario((*singles, wide), Bytes(sizes, 999), limits)
    crowd = [(at, f"s{at % len(singles)}", 8) for at in range(600)]
    trace = trace_of(*sorted([*crowd, *((at, "wide", 5) for at in (50.5, 200.5, 400.5))]))
    found = simulate(scenario, trace, OURS)
    waits = [answer.waited for answer in found.answers if answer.expert == "wide"]
    assert len(waits) == 3
    assert max(answer.waited for answer in found.answers) <= found.wait_bound_seconds
