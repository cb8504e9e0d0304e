"""Weight files are read ahead for who cannot start yet, no further than is of use, and counted as useful or wasted."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.guesses import Guess
from coe_server.cache.lookahead import LIFETIME_SECONDS
from coe_server.cache.scheduler import Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.simulation.simulator import run_virtually
from tests.cache.fakes import FakeEngine, Memory

COSTS = {"start": 20.0, "wake": 0.4, "sleep": 0.3, "stop": 1.0}


class Reader:
    """A `WeightReader` that notes what it is asked for; `seconds` to read `size_bytes`."""

    def __init__(self, seconds=5.0, size_bytes=1000):
        self.seconds = seconds
        self.size_bytes = size_bytes
        self.asked = []
        self.given_up = []

    async def read(self, expert, unclaimed, read_before):
        self.asked.append((expert, unclaimed, read_before))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.given_up.append(expert)
            raise
        return self.size_bytes


@asynccontextmanager
async def running(reader, names="abc", device=10, preload=None, costs=COSTS):
    memory = Memory(Bytes(device, 100))
    engines = {name: FakeEngine(name, None, memory) for name in names}
    experts = [Expert(*pair, costs=costs, preload=(preload or {}).get(pair[0], Tier.DISK)) for pair in engines.items()]
    clock = asyncio.get_running_loop().time
    cache = ExpertCache(experts, memory.capacity, Limits(), clock=clock, reader=reader)
    conductor = asyncio.create_task(cache.run())
    try:
        yield cache, engines
    finally:
        for engine in engines.values():
            engine.gate.set()
            engine.calls.append("closing")
        conductor.cancel()
        await asyncio.gather(conductor, return_exceptions=True)
        assert memory.broken_promises == []


def counts(cache, guess=Guess.PAGE_CACHE):
    found = cache.guesses
    return found.begun[guess], found.useful[guess], found.wasted[guess]


async def slow_start(engine, seconds):
    engine.gate.clear()
    await asyncio.sleep(seconds)
    engine.gate.set()


def test_who_waits_for_another_ones_start_has_its_files_read_and_that_is_useful_when_it_starts():
    async def story():
        reader = Reader()
        async with running(reader) as (cache, engines):
            slow = asyncio.create_task(slow_start(engines["a"], 20))
            first = asyncio.create_task(cache.lease("a"))
            await asyncio.sleep(1)
            second = asyncio.create_task(cache.lease("b"))
            await asyncio.sleep(10)
            assert reader.asked == [("b", Bytes(0, 85), 0)]
            assert counts(cache) == (1, 0, 0)
            (await first).release()
            (await second).release()
            await slow
            assert counts(cache) == (1, 1, 0)
            seen = [event.fields async for event in _events(cache) if event.kind == "prefetch"]
            assert seen == [{"expert": "b", "seconds": 5.0, "bytes": 1000}]

    run_virtually(story())


async def _events(cache):
    cache.events.close()
    async for event in cache.events.after(0):
        yield event


def test_a_start_that_comes_while_its_files_are_being_read_ends_the_reading_and_it_was_useful():
    async def story():
        reader = Reader(seconds=100)
        async with running(reader, names="ab") as (cache, engines):
            slow = asyncio.create_task(slow_start(engines["a"], 20))
            first = asyncio.create_task(cache.lease("a"))
            await asyncio.sleep(1)
            second = asyncio.create_task(cache.lease("b"))
            await slow
            (await first).release()
            (await second).release()
            assert reader.given_up == ["b"]
            assert counts(cache) == (1, 1, 0)

    run_virtually(story())


def test_a_guess_is_given_up_for_somebody_who_has_to_start():
    async def story():
        reader = Reader(seconds=100)
        async with running(reader, device=20) as (cache, engines):
            (await cache.lease("b")).release()
            cache.unload("b")  # on disk, and the likeliest to be asked for
            await asyncio.sleep(1)
            assert [expert for expert, *_ in reader.asked] == ["b"]
            slow = asyncio.create_task(slow_start(engines["a"], 20))
            (await cache.lease("a")).release()
            await slow
            assert reader.given_up == ["b"]
            assert counts(cache)[2] == 1

    run_virtually(story())


def test_who_does_not_start_for_long_has_had_its_files_read_for_nothing():
    async def story():
        reader = Reader()
        async with running(reader, names="ab", device=20) as (cache, _):
            (await cache.lease("b")).release()
            cache.unload("b")
            await asyncio.sleep(10)
            assert counts(cache) == (1, 0, 0)
            await asyncio.sleep(LIFETIME_SECONDS)
            (await cache.lease("b")).release()
            assert counts(cache) == (1, 0, 1)

    run_virtually(story())


def test_what_lies_nowhere_is_not_counted_and_not_asked_for_again_and_again():
    async def story():
        reader = Reader(size_bytes=0)
        async with running(reader, names="ab", device=20) as (cache, _):
            (await cache.lease("b")).release()
            cache.unload("b")
            for _ in range(5):
                await asyncio.sleep(10)
                (await cache.lease("a")).release()
            assert len([expert for expert, *_ in reader.asked if expert == "b"]) == 1
            assert counts(cache) == (0, 0, 0)

    run_virtually(story())


def test_while_one_is_preloaded_the_next_ones_files_are_read():
    async def story():
        reader = Reader()
        async with running(reader, names="ab", preload={"a": Tier.HOST, "b": Tier.HOST}) as (cache, engines):
            slow = asyncio.create_task(slow_start(engines["a"], 20))
            await cache.ready.wait()
            await slow
            assert [expert for expert, *_ in reader.asked] == ["b"]
            assert counts(cache) == (1, 1, 0)

    run_virtually(story())


@pytest.mark.parametrize(("next_one", "outcome"), [("a", (1, 1, 0)), ("f", (1, 0, 1))])
def test_room_that_was_made_on_a_guess_is_useful_to_another_and_wasted_on_who_made_it(next_one, outcome):
    async def story():
        async with running(None, names="abcdef") as (cache, engines):
            for name in "abcdef":
                (await cache.lease(name)).release()
            await asyncio.sleep(1)
            assert engines["f"].calls == ["start", "sleep"]
            assert counts(cache, Guess.ROOM)[0] >= 1
            before = counts(cache, Guess.ROOM)
            open_now = before[0] - before[1] - before[2]
            assert open_now == 1
            lease = await cache.lease(next_one)
            found = counts(cache, Guess.ROOM)
            assert tuple(now - then for now, then in zip(found, before, strict=True)) == (0, *outcome[1:])
            lease.release()

    run_virtually(story())
