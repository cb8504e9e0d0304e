"""Experts with numbers of their own for answers at a time: admitted, foretold and bounded by them."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import OURS, Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.cache.wait_bound import turn_seconds, turns_ahead
from coe_server.simulation.comparison import measure
from coe_server.simulation.simulator import simulate
from coe_server.simulation.traces import Request, Trace
from tests.cache.fakes import FakeEngine, Memory
from tests.cache.machines import machine, played
from tests.cache.test_expert_cache import run, settle
from tests.examples import examples

LIMITS = Limits(max_wait_seconds=1000, max_concurrency=3)


def cache_of(**own):
    """Experts with room for all of them, and each one's own number (None: the common one)."""
    memory = Memory(Bytes(100, 100))
    experts = [Expert(name, FakeEngine(name, None, memory), max_concurrency=number) for name, number in own.items()]
    return ExpertCache(experts, memory.capacity, LIMITS)


async def let_in(cache, name, fan_outs):
    """The requests that have a lease at once; all give theirs back at the end."""
    tasks = [asyncio.create_task(cache.lease(name, fan_out=fan_out)) for fan_out in fan_outs]
    await settle()
    found = [task.done() for task in tasks]
    for task in tasks:
        (await task).release()
    return found


def test_each_expert_lets_in_as_many_as_it_takes_at_a_time():
    async def story():
        cache = cache_of(one=1, five=5, common=None)
        conductor = asyncio.create_task(cache.run())
        for name in cache.slots:
            (await cache.lease(name)).release()
        assert [sum(await let_in(cache, name, [1] * 6)) for name in ("one", "five", "common")] == [1, 5, 3]
        assert await let_in(cache, "five", [5, 1]) == [True, False]
        wide = await cache.lease("one", fan_out=4)
        assert wide.leases == 1, "no request takes more than there are"
        assert not cache.grants_at_once("one")
        wide.release()
        assert cache.grants_at_once("one", 4)
        assert [one.max_concurrency for one in cache.status()] == [1, 5, 3]
        conductor.cancel()
        await asyncio.gather(conductor, return_exceptions=True)

    run(story())


def test_the_turn_of_the_expert_with_the_fewest_counts_in_the_bound():
    common, own = cache_of(a=None, b=None), cache_of(a=1, b=8)
    longest = turn_seconds(replace(LIMITS, max_concurrency=1))
    turns = turns_ahead(2) * (longest - turn_seconds(LIMITS))
    assert own.bounds.seconds() == pytest.approx(common.bounds.seconds() + turns)


def test_a_pinned_expert_with_few_leases_counts_in_the_bound_of_the_server():
    """It shares the device with no other expert, and its own queue may take longest all the same."""
    memory = Memory(Bytes(100, 100))
    free = [Expert(name, FakeEngine(name, None, memory)) for name in "ab"]
    limits = replace(LIMITS, queue_limit=60, max_concurrency=10)
    pinned = Expert("narrow", FakeEngine("narrow", None, memory), pin=Tier.DEVICE, max_concurrency=1)
    bounds = ExpertCache([*free, pinned], memory.capacity, limits).bounds
    assert bounds.longest.experts == ("narrow",)
    assert bounds.seconds() == limits.max_wait_seconds + 60 * limits.max_generation_seconds
    assert bounds.seconds() > bounds.groups[0].bound_seconds(limits)


@st.composite
def unlike(draw):
    scenario, trace = draw(played(longest=24))
    own = st.sampled_from([None, 1, 2, 5])
    experts = tuple(replace(one, max_concurrency=draw(own)) for one in scenario.experts)
    fan_outs = st.sampled_from([1, 1, 1, 3])
    requests = tuple(replace(request, fan_out=draw(fan_outs)) for request in trace.requests)
    limits = replace(scenario.limits, queue_limit=6, max_generation_seconds=8)
    return replace(scenario, experts=experts, limits=limits), Trace("unlike", requests)


@given(unlike())
@examples(100)
def test_experts_with_unlike_numbers_keep_the_bound_that_is_stated(stage):
    scenario, trace = stage
    assert measure(simulate(scenario, trace, OURS)).bound_kept


def test_a_queue_that_goes_in_one_by_one_waits_longer_than_the_common_number_would_say():
    narrow = machine(1, queue_limit=4, max_wait_seconds=0.5, max_generation_seconds=10)
    narrow = replace(narrow, experts=tuple(replace(one, max_concurrency=1) for one in narrow.experts))
    crowd = Trace("crowd", tuple(Request(0.0, 10, "a") for _ in range(4)))
    found = simulate(narrow, crowd, OURS)
    stated_for_all = found.wait_bound_seconds - turn_seconds(replace(narrow.limits, max_concurrency=1))
    assert measure(found).bound_kept
    assert measure(found).wait_max > stated_for_all + turn_seconds(narrow.limits)
