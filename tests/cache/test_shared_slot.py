"""A name on another expert's slot: its leases, queue and bound are that expert's. Presets use it."""

from __future__ import annotations

import asyncio

import pytest

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.engines.engine import Footprint
from coe_server.errors import ExpertBusy, Overloaded, UnknownModel
from tests.cache.fakes import FakeEngine, Memory

LIMITS = Limits(max_concurrency=2, queue_limit=2)


def cache_of(limits: Limits = LIMITS) -> ExpertCache:
    memory = Memory(Bytes(10, 10))
    engine = FakeEngine("base", Footprint(10, 0, 0, 10), memory)
    return ExpertCache([Expert("base", engine)], memory.capacity, limits, bases={"preset": "base"})


async def running(cache: ExpertCache) -> asyncio.Task[None]:
    return asyncio.create_task(cache.run())


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_leases_of_both_names_are_one_experts() -> None:
    async def story() -> None:
        cache = cache_of()
        task = await running(cache)
        one, other = await cache.lease("base"), await cache.lease("preset")
        assert (one.expert, other.expert) == ("base", "base")
        assert cache.slots["preset"] is cache.slots["base"]
        assert cache.slots["base"].leases == 2
        assert not cache.grants_at_once("preset")
        with pytest.raises(ExpertBusy, match="is in use by 2 requests"):
            cache.controls.unload("base")
        other.release()
        assert cache.grants_at_once("preset")
        one.release()
        await ended(task)

    asyncio.run(story())


def test_both_names_wait_in_one_queue() -> None:
    async def story() -> None:
        cache = cache_of()
        waiting = [asyncio.create_task(cache.lease(name)) for name in ("base", "preset")]
        await asyncio.sleep(0)
        for name in ("base", "preset"):
            with pytest.raises(Overloaded, match="2 requests already wait for expert 'base'"):
                await cache.lease(name)
        task = await running(cache)
        for lease in await asyncio.gather(*waiting):
            lease.release()
        await ended(task)

    asyncio.run(story())


def test_its_name_is_counted_once_and_its_wait_is_its_bases() -> None:
    async def story() -> None:
        cache = cache_of()
        assert [one.name for one in cache.status()] == ["base"]
        assert list(cache.slots) == ["base"]
        assert cache.waits.predicted_seconds("preset") == cache.waits.predicted_seconds("base")
        with_two = ExpertCache([Expert("base", cache.slots["base"].engine)], Bytes(10, 10), LIMITS)
        assert cache.bounds.seconds() == with_two.bounds.seconds(), "a name adds no expert to the bound"

    asyncio.run(story())


def test_moves_are_asked_for_by_the_name_of_the_base() -> None:
    cache = cache_of()
    for move in (cache.controls.unload, lambda name: cache.controls.pin(name, Tier.DEVICE)):
        with pytest.raises(ExpertBusy, match="shares the engine of its base; ask for 'base'"):
            move("preset")
    with pytest.raises(UnknownModel, match="known: base, preset"):
        cache.controls.unload("other")
