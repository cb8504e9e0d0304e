"""One engine that hangs while it starts: the others go on, and it is not waited for longer than its starts warrant."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits
from coe_server.cache.slot import Expert, State
from coe_server.cache.tiers import Bytes, Tier
from coe_server.errors import ExpertUnavailable
from coe_server.simulation.simulator import run_virtually
from tests.cache.fakes import FakeEngine, Memory

MEASURED = {"start": 20.0, "wake": 0.4, "sleep": 0.3, "stop": 1.0}
START_TIMEOUT = 80.0  # four times as long


@asynccontextmanager
async def running(names="abc", device=20, costs=MEASURED, **options):
    memory = Memory(Bytes(device, 100))
    engines = {name: FakeEngine(name, None, memory) for name in names}
    experts = [Expert(*pair, costs=costs, preload=options.get(pair[0], Tier.DISK)) for pair in engines.items()]
    clock = asyncio.get_running_loop().time
    one_at_a_time = options.get("one_move_at_a_time", False)
    limits = Limits(prefetch=False)
    cache = ExpertCache(experts, memory.capacity, limits, clock=clock, one_move_at_a_time=one_at_a_time)
    conductor = asyncio.create_task(cache.run())
    try:
        yield cache, engines, clock
    finally:
        conductor.cancel()
        await asyncio.gather(conductor, return_exceptions=True)
        assert cache.ledger.used == Bytes()
        assert memory.broken_promises == []


def state(cache, name):
    return next(one for one in cache.status() if one.name == name).state


def test_wakes_go_on_while_an_engine_hangs_in_its_start():
    async def story():
        async with running() as (cache, engines, clock):
            for name in "ab":
                (await cache.lease(name)).release()
            engines["c"].gate.clear()  # it takes one of the two places
            stuck = asyncio.create_task(cache.lease("c"))
            began = clock()
            await asyncio.sleep(1)
            assert state(cache, "c") is State.STARTING
            for name in "abab":
                (await cache.lease(name)).release()
            assert clock() - began < 5
            assert engines["a"].calls.count("wake") + engines["b"].calls.count("wake") >= 3
            assert not stuck.done()
            stuck.cancel()

    run_virtually(story())


@pytest.mark.parametrize("one_move_at_a_time", [False, True])
def test_a_start_that_takes_four_times_as_long_as_usual_is_given_up_for_the_next(one_move_at_a_time):
    async def story():
        async with running(one_move_at_a_time=one_move_at_a_time) as (cache, engines, clock):
            engines["a"].gate.clear()
            stuck = asyncio.create_task(cache.lease("a"))
            await asyncio.sleep(1)
            began = clock()
            (await cache.lease("b")).release()
            assert clock() - began == pytest.approx(START_TIMEOUT - 1, abs=0.1)
            with pytest.raises(ExpertUnavailable, match=r"a was not up within 80 s"):
                await stuck
            assert state(cache, "a") is State.FAILED
            assert engines["a"].calls[:2] == ["start", "stop"]

    run_virtually(story())


def test_a_start_given_up_is_waited_for_twice_as_long_the_next_time():
    """A machine may have become slower since it was measured: no expert may time out for ever because of that."""

    async def story():
        async with running() as (cache, engines, clock):
            engines["a"].gate.clear()
            for patience in (START_TIMEOUT, 2 * START_TIMEOUT, 4 * START_TIMEOUT):
                began = clock()
                with pytest.raises(ExpertUnavailable, match="was not up within"):
                    await cache.lease("a")
                assert clock() - began == pytest.approx(patience, abs=0.1)
                with pytest.raises(ExpertUnavailable) as resting:
                    await cache.lease("a")
                await asyncio.sleep(resting.value.retry_after_seconds + 0.1)
            asyncio.get_running_loop().call_later(7 * START_TIMEOUT, engines["a"].gate.set)
            (await cache.lease("a")).release()
            assert cache.slots.measured_costs()["a"]["start"] == pytest.approx(20 + 0.3 * (7 * START_TIMEOUT - 20))

    run_virtually(story())


def test_a_start_that_was_never_measured_has_only_the_engines_own_limit():
    async def story():
        async with running(costs={}) as (cache, engines, clock):
            engines["a"].gate.clear()
            asyncio.get_running_loop().call_later(5000, engines["a"].gate.set)
            (await cache.lease("a")).release()
            assert clock() == pytest.approx(5000, abs=0.1)

    run_virtually(story())


def test_a_short_start_is_not_given_up_for_a_hiccup():
    async def story():
        async with running(costs={"start": 0.5}) as (cache, engines, _):
            engines["a"].gate.clear()
            asyncio.get_running_loop().call_later(29, engines["a"].gate.set)
            (await cache.lease("a")).release()

    run_virtually(story())


def test_the_next_expert_is_preloaded_when_the_first_one_hangs():
    async def story():
        async with running("ab", device=10, a=Tier.HOST, b=Tier.HOST) as (cache, engines, clock):
            engines["a"].gate.clear()
            await cache.ready.wait()
            assert clock() == pytest.approx(START_TIMEOUT, abs=0.1)
            assert state(cache, "b") is State.HOST

    run_virtually(story())
