"""What a refused request is told about its wait is what it would have waited, other experts' turns included."""

import asyncio

import pytest

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.cache.wait_times import Ahead, Forecast
from coe_server.engines.simulated import SimulatedEngine
from coe_server.errors import Overloaded
from coe_server.simulation.simulator import run_virtually

COSTS = {"start": 8.0, "wake": 2.0, "sleep": 1.0, "stop": 0.0, "service": 5.0}


def engine(name):
    seconds = {f"{kind}_seconds": COSTS[kind] for kind in ("start", "wake", "sleep")}
    return SimulatedEngine(name, weights_bytes=10, ttft_seconds=0, tokens_per_second=1, **seconds)


async def answer(cache, name):
    """One request that stays inside for 5 s; when it is over."""
    with await cache.lease(name):
        await asyncio.sleep(5)
    return asyncio.get_running_loop().time()


async def told_and_true(earlier, on_device=1, **where):
    """One request for each of `earlier`, and one too many for the last of them: in how many seconds it is told to come
    back, and in how many the one before it is through."""
    clock = asyncio.get_running_loop().time
    experts = [Expert(name, engine(name), preload=where.get(name, Tier.DISK), costs=COSTS) for name in "abcd"]
    limits = Limits(queue_limit=1, max_concurrency=1, max_wait_seconds=10, prefetch=False)
    cache = ExpertCache(experts, Bytes(10 * on_device, 100), limits, clock=clock)
    conductor = asyncio.create_task(cache.run())
    await cache.ready.wait()
    tasks = []
    for name in earlier:
        tasks.append(asyncio.create_task(answer(cache, name)))
        await asyncio.sleep(0.5 if len(tasks) > 1 else 2.5)  # the first one is let in
    asked = clock()
    with pytest.raises(Overloaded) as refused:
        await cache.lease(earlier[-1])
    *_, last = await asyncio.gather(*tasks)
    conductor.cancel()
    await asyncio.gather(conductor, return_exceptions=True)
    return refused.value.retry_after_seconds, last - asked


@pytest.mark.parametrize(
    ("earlier", "where"),
    [
        ("aabc", {"a": Tier.HOST, "b": Tier.HOST, "c": Tier.HOST}),  # two turns ahead of its own, all of them wakes
        ("aabc", {"a": Tier.HOST}),  # the same with cold starts
        ("abcd", {"a": Tier.HOST, "on_device": 2}),  # engines start one after the other
        ("abcd", {"a": Tier.HOST, "d": Tier.HOST, "on_device": 2}),  # a wake does not wait for starts
    ],
)
def test_a_refusal_counts_the_turns_ahead(earlier, where):
    told, true = run_virtually(told_and_true(earlier, **where))
    assert told == pytest.approx(true, rel=0.12)


def ahead(expert, from_disk=False, switch=2.0, serving=5.0):
    return Ahead(expert, from_disk, switch, serving)


def test_turns_follow_each_other_on_the_places_there_are():
    one = Forecast([ahead("a"), ahead("b"), ahead("c")], [4.0], 0.0)
    assert one.until == {"a": 6, "b": 13, "c": 20}
    assert one.wake_after_all == 25
    two = Forecast([ahead("a"), ahead("b"), ahead("c")], [4.0, 0.0], 0.0)
    assert two.until == {"a": 2, "b": 6, "c": 9}


def test_a_start_waits_for_the_one_before_and_no_wake_waits_for_it():
    turns = [ahead("a", from_disk=True, switch=40), ahead("b", from_disk=True, switch=40), ahead("c")]
    found = Forecast(turns, [0.0, 0.0], starts_from=0.0)
    assert found.until == {"a": 40, "c": 2, "b": 80}
    assert found.wake_after_all == 7
    assert found.start_after_all == 80


def test_where_no_expert_can_leave_there_is_nothing_to_foretell():
    assert Forecast([ahead("a")], [], 0.0).until == {"a": 2}


def test_an_answer_that_has_gone_on_for_a_while_is_soon_over():
    """A new request is admitted when the first answer in progress has ended, the next one after the second."""

    async def story():
        clock = asyncio.get_running_loop().time
        expert = Expert("a", engine("a"), costs={**COSTS, "service": 8.0})
        cache = ExpertCache([expert], Bytes(10, 100), Limits(max_concurrency=2), clock=clock)
        conductor = asyncio.create_task(cache.run())

        def told():
            (one,) = cache.status()
            return one.predicted_wait_seconds

        first = await cache.lease("a")
        await asyncio.sleep(6)
        assert told() == 0.0
        second = await cache.lease("a")
        assert told() == 8.0 - 6.0
        third = asyncio.create_task(cache.lease("a"))
        await asyncio.sleep(1)
        assert told() == 8.0 - 1.0
        first.release()
        assert told() == 8.0 - 1.0  # the third is inside
        await asyncio.sleep(60)
        assert told() == 0.0  # it can end at any moment
        second.release()
        (await third).release()
        conductor.cancel()
        await asyncio.gather(conductor, return_exceptions=True)

    run_virtually(story())


def test_a_device_with_room_for_everybody_is_looked_at_as_quickly():
    async def story():
        cache = ExpertCache([Expert("a", engine("a"), costs=COSTS)], Bytes(10**18, 10**18), Limits())
        assert [one.predicted_wait_seconds for one in cache.status()] == [8.0]

    run_virtually(story())
