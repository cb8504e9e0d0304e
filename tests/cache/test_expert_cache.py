"""The cache's promises against engines that notice when one is broken."""

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits
from coe_server.cache.queue import Lease
from coe_server.cache.slot import Expert, State
from coe_server.cache.tiers import Bytes, Tier, bytes_in
from coe_server.engines.engine import Footprint
from coe_server.errors import ExpertBusy, ExpertUnavailable, NoRoom, Overloaded, UnknownModel
from tests.cache.fakes import FakeEngine, Memory
from tests.examples import examples
from tests.patience import PATIENCE_SECONDS


class Faults(logging.Handler):
    """Collects what the server logs about faults of its own, which no request would see."""

    def __init__(self):
        super().__init__(logging.CRITICAL)
        self.messages = []
        logging.getLogger("coe_server").addHandler(self)

    def emit(self, record):
        self.messages.append(record.getMessage())


PLENTY = Limits(max_wait_seconds=0.05, queue_limit=1000, max_concurrency=4)


class Clock:
    """A clock the test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@asynccontextmanager
async def running(names="ab", device=10, host=100, limits=PLENTY, clock=None, **options):
    memory = Memory(Bytes(device, host))
    engines = {name: FakeEngine(name, options.pop(name, None), memory) for name in names}
    experts = [Expert(name, engine, **options) for name, engine in engines.items()]
    cache = ExpertCache(experts, memory.capacity, limits, **({"clock": clock} if clock else {}))
    conductor = asyncio.create_task(cache.run())
    faults = Faults()
    try:
        yield cache, engines
    finally:
        logging.getLogger("coe_server").removeHandler(faults)
        for engine in engines.values():
            engine.gate.set()
            engine.calls.append("closing")
        conductor.cancel()
        with pytest.raises(asyncio.CancelledError):
            await conductor
        assert cache.ledger.used == Bytes()
        assert memory.broken_promises == []
        assert faults.messages == []


async def settle():
    """Let everything that can happen without time passing happen."""
    for _ in range(50):
        await asyncio.sleep(0)


async def overdue(cache, *names):
    """Wait until these experts drain for requests that have waited too long."""
    for _ in range(20_000):
        if all(cache.slots[name].draining for name in names):
            return
        await asyncio.sleep(0.001)


def status(cache, name):
    return next(s for s in cache.status() if s.name == name)


def run(story):
    asyncio.run(asyncio.wait_for(story, PATIENCE_SECONDS))


def test_twenty_simultaneous_requests_cause_one_load():
    async def story():
        async with running(limits=Limits(max_concurrency=20)) as (cache, engines):
            leases = await asyncio.gather(*(cache.lease("a") for _ in range(20)))
            assert engines["a"].calls == ["start"]
            assert status(cache, "a").leases == 20
            for lease in leases:
                lease.release()
            assert status(cache, "a").leases == 0

    run(story())


def test_an_expert_that_is_used_stays_until_it_is_given_back():
    async def story():
        async with running() as (cache, engines):
            first = await cache.lease("a")
            in_use = engines["a"].life.in_use()
            in_use.__enter__()
            other = asyncio.create_task(cache.lease("b"))
            await overdue(cache, "a")
            await settle()
            assert not other.done()
            assert status(cache, "a").state is State.DRAINING
            in_use.__exit__(None, None, None)
            first.release()
            (await other).release()
            assert engines["a"].calls == ["start", "sleep"]
            assert status(cache, "a").residency == "host"

    run(story())


class Leaping(Clock):
    """Stands still, but for one leap between two looks at it."""

    looks = None

    def __call__(self):
        if self.looks is not None:
            self.looks -= 1
            if self.looks == 0:
                self.now += 1.0
        return self.now


@pytest.mark.parametrize("looks", range(1, 13))
def test_a_request_that_becomes_overdue_between_two_passes_is_not_forgotten(looks):
    async def story():
        clock = Leaping()
        async with running(clock=clock) as (cache, _):
            first = await cache.lease("a")
            await settle()
            other = asyncio.create_task(cache.lease("b"))
            await asyncio.sleep(0)  # it is in the queue, and the conductor has not looked yet
            clock.looks = looks
            for _ in range(2000):
                if cache.slots["a"].draining:  # read without asking for the time
                    break
                await asyncio.sleep(0.001)
            drains = cache.slots["a"].draining
            first.release()
            (await other).release()
            assert drains

    run(story())


def test_while_a_request_is_overdue_the_expert_on_the_device_admits_no_new_ones():
    async def story():
        async with running() as (cache, engines):
            first = await cache.lease("a")
            other = asyncio.create_task(cache.lease("b"))
            await overdue(cache, "a")
            late = asyncio.create_task(cache.lease("a"))
            await settle()
            assert not late.done()
            first.release()
            (await other).release()
            (await late).release()
            assert engines["a"].calls == ["start", "sleep", "wake"]

    run(story())


def test_waking_is_used_where_a_process_sleeps_and_starting_where_none_is():
    async def story():
        async with running("abc", device=10, host=30) as (cache, engines):
            for name in "abab":
                (await cache.lease(name)).release()
            assert [engines[n].calls for n in "ab"] == [["start", "sleep", "wake", "sleep"], ["start", "sleep", "wake"]]
            (await cache.lease("c")).release()
            assert engines["a"].calls[-1] == "stop"  # no host room for three: the sleeper goes to disk
            assert engines["a"].stops_at_once == [False]
            assert engines["b"].calls[-1] == "sleep"

    run(story())


def test_a_caller_who_leaves_the_queue_is_forgotten_and_the_load_goes_on():
    async def story():
        async with running() as (cache, engines):
            engines["a"].gate.clear()
            caller = asyncio.create_task(cache.lease("a"))
            await settle()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            engines["a"].gate.set()
            await settle()
            assert status(cache, "a").residency == "device"
            assert (status(cache, "a").leases, status(cache, "a").queued) == (0, 0)
            (await cache.lease("a")).release()
            assert engines["a"].calls == ["start"]

    run(story())


def test_a_caller_cancelled_in_the_moment_of_the_grant_holds_nothing():
    async def story():
        async with running(limits=Limits(max_concurrency=1)) as (cache, _):
            first = await cache.lease("a")
            second = asyncio.create_task(cache.lease("a"))
            await settle()
            first.release()
            cache._admission.admit(cache.slots["a"])  # grants, before the waiting task runs again
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert status(cache, "a").leases == 0
            (await cache.lease("a")).release()

    run(story())


def test_a_failed_start_reaches_all_waiters_and_the_next_request_after_the_cooldown_recovers():
    async def story():
        clock = Clock()
        async with running(clock=clock) as (cache, engines):
            engines["a"].fail.add("start")
            outcomes = await asyncio.gather(*(cache.lease("a") for _ in range(3)), return_exceptions=True)
            assert all(isinstance(o, ExpertUnavailable) and "failed to start" in str(o) for o in outcomes)
            assert cache.ledger.used == Bytes()
            assert status(cache, "a").state is State.FAILED
            with pytest.raises(ExpertUnavailable) as refused:
                await cache.lease("a")
            assert refused.value.retry_after_seconds == pytest.approx(30)
            clock.now += 31
            (await cache.lease("b")).release()  # something happens, so the conductor looks at the clock
            (await cache.lease("a")).release()
            assert engines["a"].calls == ["start", "stop", "start"]

    run(story())


@pytest.mark.parametrize(("call", "then"), [("wake", ["stop", "start"]), ("sleep", ["stop"])])
def test_a_failed_wake_or_sleep_stops_the_engine_and_the_request_is_served_all_the_same(call, then):
    async def story():
        async with running() as (cache, engines):
            engines["a"].fail.add(call)
            for name in "aba" if call == "wake" else "ab":
                (await cache.lease(name)).release()
            calls = engines["a"].calls
            assert calls[calls.index(call) + 1 :] == then
            assert engines["a"].stops_at_once == [True]  # others wait for its memory, and it has nothing to finish

    run(story())


def test_an_engine_that_dies_frees_its_bytes_and_the_next_request_starts_it_again():
    async def story():
        async with running() as (cache, engines):
            lease = await cache.lease("a")
            engines["a"].die()
            assert await lease.engine_is_gone(within_seconds=PATIENCE_SECONDS)
            await settle()
            assert status(cache, "a").residency == "disk"
            assert cache.ledger.used == Bytes()
            again = await cache.lease("a")
            lease.release()  # of the life before: it must not count against this one
            assert status(cache, "a").leases == 1
            again.release()
            assert engines["a"].calls == ["start", "stop", "start"]
            assert engines["a"].stops_at_once == [True]

    run(story())


def test_an_engine_that_keeps_dying_is_given_a_rest():
    async def story():
        async with running() as (cache, engines):
            for _ in range(2):
                lease = await cache.lease("a")
                engines["a"].die()
                await lease.engine_is_gone(within_seconds=PATIENCE_SECONDS)
                lease.release()
                await settle()
            assert status(cache, "a").failure == "engine 'a' was killed"
            with pytest.raises(ExpertUnavailable, match="was killed"):
                await cache.lease("a")

    run(story())


def test_an_engine_that_fails_again_after_its_rest_rests_twice_as_long():
    async def story():
        clock = Clock()
        async with running(clock=clock) as (cache, engines):
            for rest in (30, 60, 120):
                engines["a"].fail.add("start")
                with pytest.raises(ExpertUnavailable, match="failed to start"):
                    await cache.lease("a")
                with pytest.raises(ExpertUnavailable) as refused:
                    await cache.lease("a")
                assert refused.value.retry_after_seconds == pytest.approx(rest)
                clock.now += rest + 1
                (await cache.lease("b")).release()  # something happens, so the conductor looks at the clock
            (await cache.lease("a")).release()

    run(story())


def test_a_person_may_have_a_failed_expert_tried_again_at_once():
    async def story():
        async with running() as (cache, engines):
            engines["a"].fail.add("start")
            with pytest.raises(ExpertUnavailable, match="failed to start"):
                await cache.lease("a")
            await cache.controls.load("a")
            assert status(cache, "a").state is State.DEVICE

    run(story())


def test_an_expert_just_put_to_sleep_makes_room_for_others_too_while_the_engine_it_left_for_still_starts():
    large = Footprint(device_awake=10, device_asleep=4, host_process=1, host_image=10)
    patient = Limits(max_wait_seconds=60, prefetch=False)

    async def story():
        async with running(
            "abc", device=20, limits=patient, a=large, c=large, b=large._replace(device_awake=8, device_asleep=0)
        ) as (cache, engines):
            for name in "caa":  # c is worth less, so it leaves first
                (await cache.lease(name)).release()
            engines["a"].gate.clear()
            engines["b"].gate.clear()
            to_b = asyncio.create_task(cache.lease("b"))
            await settle()
            assert (status(cache, "c").residency, status(cache, "a").state) == ("host", State.DRAINING)
            to_c = asyncio.create_task(cache.lease("c"))  # for which a has to go on to disk
            await settle()
            engines["a"].gate.set()
            await settle()
            assert to_c.done()
            assert not to_b.done()
            engines["b"].gate.set()
            (await to_c).release()
            (await to_b).release()

    run(story())


def test_a_full_queue_refuses_with_a_time_to_come_back():
    async def story():
        async with running(limits=Limits(queue_limit=2)) as (cache, engines):
            engines["a"].gate.clear()
            waiting = [asyncio.create_task(cache.lease("a")) for _ in range(2)]
            await settle()
            with pytest.raises(Overloaded) as refused:
                await cache.lease("a")
            assert refused.value.retry_after_seconds >= 1
            engines["a"].gate.set()
            for lease in await asyncio.gather(*waiting):
                lease.release()

    run(story())


def test_an_expert_that_can_never_fit_is_refused_with_the_reason():
    async def story():
        huge = Footprint(device_awake=11)
        async with running(a=huge) as (cache, _):
            with pytest.raises(ExpertUnavailable, match="needs 0 MiB of device memory"):
                await cache.lease("a")

    run(story())


def test_an_unknown_expert_is_named_together_with_those_there_are():
    async def story():
        async with running() as (cache, _):
            with pytest.raises(UnknownModel, match="unknown expert 'x'; known: a, b"):
                await cache.lease("x")

    run(story())


def test_an_engine_larger_than_its_estimate_is_not_kept_where_it_can_never_fit():
    async def story():
        async with running() as (cache, engines):

            async def start_larger(within_seconds=None, seat=(0,)):
                engines["a"].footprint = Footprint(device_awake=10, host_process=200)

            engines["a"].start = start_larger
            with pytest.raises(ExpertUnavailable, match="MiB of host memory; the limit is"):
                await cache.lease("a")
            assert cache.ledger.used == Bytes()
            assert engines["a"].calls == ["stop"]

    run(story())


def test_an_engine_larger_than_its_estimate_makes_others_leave():
    async def story():
        async with running(device=20) as (cache, engines):
            (await cache.lease("a")).release()
            start = engines["b"].start

            async def start_larger(within_seconds=None, seat=(0,)):
                engines["b"].footprint = Footprint(20, 0, 10, 5)
                engines["b"].memory.capacity = Bytes(30, 100)  # for the moment until it is measured
                await start()

            engines["b"].start = start_larger
            (await cache.lease("b")).release()
            assert engines["a"].calls == ["start", "sleep"]
            assert engines["b"].calls == ["start", "stop", "start"]

    run(story())


def test_a_plan_whose_memory_is_never_freed_is_made_anew():
    async def story():
        async with running("abc", device=20, a=Footprint(10, 0, 10, 5)) as (cache, engines):
            for name in "ab":
                (await cache.lease(name)).release()
            sleep = engines["a"].sleep

            async def sleep_badly():
                engines["a"].footprint = Footprint(10, 3, 10, 5)  # asleep it keeps more than was known
                await sleep()

            engines["a"].sleep = sleep_badly
            (await cache.lease("c")).release()
            assert engines["c"].calls == ["start"]
            assert engines["b"].calls == ["start", "sleep"]

    run(story())


def test_an_expert_elsewhere_never_waits_for_those_here():
    async def story():
        memory = Memory(Bytes(10, 100))
        engines = {"a": FakeEngine("a", None, memory), "b": FakeEngine("b", Footprint(device_awake=0), memory)}
        experts = [Expert("a", engines["a"]), Expert("b", engines["b"], remote=True)]
        cache = ExpertCache(experts, memory.capacity, PLENTY)
        conductor = asyncio.create_task(cache.run())
        engines["a"].gate.clear()
        slow = asyncio.create_task(cache.lease("a"))
        await settle()
        with await asyncio.wait_for(cache.lease("b"), PATIENCE_SECONDS) as lease:
            assert not slow.done()
            assert not await lease.engine_is_gone(within_seconds=60)
        assert engines["b"].calls == []
        engines["a"].gate.set()
        (await slow).release()
        conductor.cancel()
        await asyncio.gather(conductor, return_exceptions=True)

    run(story())


def test_a_pinned_expert_whose_engine_dies_is_brought_back():
    async def story():
        async with running(device=20, pin=Tier.DEVICE, preload=Tier.DEVICE) as (cache, engines):
            await asyncio.wait_for(cache.ready.wait(), PATIENCE_SECONDS)
            engines["a"].die()
            await settle()
            assert status(cache, "a").residency == "device"
            assert engines["a"].calls == ["start", "start"]  # no stop: its image may serve the next start
            assert status(cache, "a").last_move.size_bytes == 10

    run(story())


@pytest.mark.parametrize(("other_waits", "calls"), [(False, ["start", "start"]), (True, ["start", "stop", "start"])])
def test_an_engine_that_dies_with_a_queue_is_started_at_once_unless_others_wait_too(other_waits, calls):
    async def story():
        async with running(limits=replace(PLENTY, max_concurrency=1)) as (cache, engines):
            with await cache.lease("a") as lost:
                waiting = [asyncio.create_task(cache.lease("a"))]
                if other_waits:
                    waiting.append(asyncio.create_task(cache.lease("b")))
                await settle()
                chosen_for_being_there = cache.slots["a"].left
                engines["a"].die()
                await settle()
                assert await lost.engine_is_gone(within_seconds=PATIENCE_SECONDS)
                assert chosen_for_being_there.is_set()
            for lease in waiting:
                (await lease).release()
            await settle()
            assert engines["a"].calls[: len(calls)] == calls
            assert status(cache, "a").leases == 0

    run(story())


def test_an_engine_that_is_started_anew_after_its_death_waits_until_the_one_that_starts_now_is_up():
    async def story():
        async with running(device=20, limits=replace(PLENTY, max_concurrency=1)) as (cache, engines):
            with await cache.lease("a"):
                engines["b"].gate.clear()
                starting = asyncio.create_task(cache.lease("b"))
                waiting = asyncio.create_task(cache.lease("a"))
                await settle()
                engines["a"].die()
                await settle()
                assert status(cache, "a").state is State.STARTING
                assert (engines["a"].calls, engines["b"].calls) == (["start"], ["start"])
            engines["b"].gate.set()
            (await starting).release()
            (await waiting).release()
            assert engines["a"].calls == ["start", "start"]

    run(story())


def test_an_engine_that_dies_while_it_is_moved_again_and_again_is_cleaned_up_once():
    async def story():
        for turns_of_the_loop in range(8):
            async with running() as (cache, engines):
                (await cache.lease("a")).release()
                other = asyncio.create_task(cache.lease("b"))
                for _ in range(turns_of_the_loop):
                    await asyncio.sleep(0)
                engines["a"].die()
                (await other).release()
                await settle()
                assert engines["a"].calls.count("stop") <= 1

    run(story())


@pytest.mark.parametrize("turns_of_the_loop", range(1, 6))
def test_a_death_is_never_taken_for_that_of_the_next_process(turns_of_the_loop):
    """The first process is stopped as soon as it is up: the watch over it must not be one over the second process."""

    async def story():
        async with running(host=15) as (cache, engines):  # room for one process alone
            first, other = (asyncio.create_task(cache.lease(name)) for name in "ab")
            for _ in range(turns_of_the_loop):
                await asyncio.sleep(0)
            first.cancel()
            (await other).release()
            assert engines["a"].calls == ["start", "stop"]
            engines["a"].gate.clear()
            second = asyncio.create_task(cache.lease("a"))
            await settle()
            engines["a"].die()  # told late: the first process is long gone
            await settle()
            engines["a"].gate.set()
            with await second, engines["a"].life.in_use():
                await settle()
                assert engines["a"].calls == ["start", "stop", "start"]

    run(story())


def test_requests_that_wait_when_the_server_stops_get_an_error_that_says_so():
    async def story():
        async with running() as (cache, engines):
            engines["a"].gate.clear()
            waiting = asyncio.create_task(cache.lease("a"))
            await settle()
            cache.stop_admitting()
            for refused in (waiting, cache.lease("b")):
                with pytest.raises(ExpertUnavailable, match="the server is stopping"):
                    await refused

    run(story())


@pytest.mark.parametrize("turns", range(5))  # of the loop
def test_an_engine_that_is_probed_while_the_server_stops_leaves_no_work_behind(turns):
    async def story():
        memory = Memory(Bytes(10, 100))
        engine = FakeEngine("a", None, memory)
        cache = ExpertCache([Expert("a", engine)], memory.capacity, PLENTY)
        conductor = asyncio.create_task(cache.run())
        with await cache.lease("a") as lease:
            engine.hangs = True
            conductor.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            lease.suspect_engine()
            await asyncio.gather(conductor, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert cache.ledger.used == Bytes()

    asyncio.run(story())


def test_what_is_to_be_preloaded_is_up_before_the_cache_is_ready():
    async def story():
        async with running("abc", device=20, preload=Tier.HOST, pin=Tier.DISK) as (cache, engines):
            await asyncio.wait_for(cache.ready.wait(), PATIENCE_SECONDS)
            assert [s.residency for s in cache.status()] == ["host"] * 3
            assert engines["c"].calls == ["start", "sleep"]

    run(story())


def test_a_pinned_expert_never_leaves_its_tier():
    async def story():
        memory = Memory(Bytes(20, 100))
        engines = {name: FakeEngine(name, None, memory) for name in "abc"}
        experts = [
            Expert("a", engines["a"], pin=Tier.DEVICE, preload=Tier.DEVICE),
            Expert("b", engines["b"]),
            Expert("c", engines["c"]),
        ]
        cache = ExpertCache(experts, memory.capacity, PLENTY)
        conductor = asyncio.create_task(cache.run())
        await asyncio.wait_for(cache.ready.wait(), PATIENCE_SECONDS)
        for name in "bcbc":
            (await cache.lease(name)).release()
        assert engines["a"].calls == ["start"]
        assert engines["b"].calls == ["start", "sleep", "wake", "sleep"]
        conductor.cancel()
        await asyncio.gather(conductor, return_exceptions=True)
        assert memory.broken_promises == []

    run(story())


@pytest.mark.parametrize(
    ("tier", "residencies"),
    [(Tier.DEVICE, ["device", "host", "device"]), (Tier.HOST, ["host", "host", "device"])],
)
def test_for_a_pinned_expert_that_is_too_far_down_an_idle_one_leaves(tier, residencies, caplog):
    async def story():
        async with running("abc", device=20, limits=replace(PLENTY, prefetch=False)) as (cache, engines):
            with await cache.lease("c"), await cache.lease("b"):  # b is given back first
                cache.controls.pin("a", tier)
                await settle()
                assert engines["a"].calls == []  # it waits until an expert is idle
                assert not caplog.messages
            await settle()
            assert [one.residency for one in cache.status()] == residencies
            assert engines["b"].calls == ["start", "sleep"]
            switches = [event.fields for event in cache.events._newer_than(0) if event.kind == "switch"]
            assert switches == [{"expert": "a", "victims": ["b"], "waiting": 0}]

    run(story())


def test_an_expert_that_never_sleeps_cannot_be_pinned_to_host_memory():
    async def story():
        async with running("ab", a=Footprint(10, host_process=10)) as (cache, _):
            with pytest.raises(ExpertBusy, match="'a' never sleeps in host memory; pin it to the device, or to disk"):
                cache.controls.pin("a", Tier.HOST)
            cache.controls.pin("b", Tier.HOST)
            assert [one.pin for one in cache.status()] == [Tier.DISK, Tier.HOST]

    run(story())


def test_an_expert_idle_for_its_ttl_leaves_the_device():
    async def story():
        async with running(ttl_seconds=0.05) as (cache, engines):
            (await cache.lease("a")).release()
            await asyncio.sleep(0.2)
            await settle()
            assert engines["a"].calls == ["start", "sleep"]

    run(story())


def test_where_moves_would_be_taken_for_each_other_they_are_made_one_at_a_time():
    async def story():
        memory = Memory(Bytes(20, 100))
        engines = {name: FakeEngine(name, None, memory) for name in "abc"}
        cache = ExpertCache(
            [Expert(*pair) for pair in engines.items()], memory.capacity, PLENTY, one_move_at_a_time=True
        )
        conductor = asyncio.create_task(cache.run())
        for name in "ab":
            (await cache.lease(name)).release()
        engines["c"].gate.clear()
        slow = asyncio.create_task(cache.lease("c"))  # a goes to sleep for it
        await settle()
        back = asyncio.create_task(cache.lease("a"))  # b would go to sleep for it
        await settle()
        assert engines["b"].calls == ["start"]
        engines["c"].gate.set()
        for task in (slow, back):
            (await task).release()
        assert engines["b"].calls == ["start", "sleep"]
        conductor.cancel()
        await asyncio.gather(conductor, return_exceptions=True)

    run(story())


def test_an_expert_waits_for_room_that_another_move_has_not_freed_yet():
    async def story():
        async with running("abc", device=20, a=Footprint(20, 0, 10, 5)) as (cache, engines):
            (await cache.lease("a")).release()
            engines["a"].gate.clear()
            waiting = [asyncio.create_task(cache.lease(name)) for name in "bc"]
            await settle()
            assert [engines[name].calls for name in "abc"] == [["start", "sleep"], [], []]
            engines["a"].gate.set()
            for lease in await asyncio.gather(*waiting):
                lease.release()
            assert engines["b"].calls == engines["c"].calls == ["start"]

    run(story())


def test_a_plan_that_ends_leaves_experts_alone_that_were_moved_again_meanwhile():
    async def story():
        async with running("abc", device=20) as (cache, engines):
            for name in "ab":
                (await cache.lease(name)).release()
            engines["c"].gate.clear()
            slow = asyncio.create_task(cache.lease("c"))  # a goes to sleep for it
            await settle()
            assert engines["a"].calls == ["start", "sleep"]
            engines["a"].gate.clear()
            back = asyncio.create_task(cache.lease("a"))  # b goes to sleep for it
            await settle()
            assert engines["a"].calls == ["start", "sleep", "wake"]
            engines["c"].gate.set()
            (await slow).release()
            await settle()
            assert engines["a"].calls == ["start", "sleep", "wake"]
            engines["a"].gate.set()
            (await back).release()

    run(story())


def test_an_engine_that_gives_no_sign_of_life_is_buried_and_one_that_does_is_not():
    async def story():
        async with running(limits=Limits(probe_timeout_seconds=0.3)) as (cache, engines):
            with await cache.lease("a") as lease:
                lease.suspect_engine()
                await asyncio.sleep(0.6)
                assert status(cache, "a").residency == "device"
                assert await lease.engine_is_alive()
                engines["a"].hangs = True
                lease.suspect_engine()
                assert not await lease.engine_is_alive()
                assert await lease.engine_is_gone(within_seconds=PATIENCE_SECONDS)
                assert not await lease.engine_is_alive()
            await settle()
            assert engines["a"].calls == ["start", "stop"]

    run(story())


@pytest.mark.parametrize("way", ["is_out_of_reach", "hangs"])
def test_a_remote_expert_that_gives_no_sign_of_life_is_backed_off_from_while_its_other_answers_go_on(way):
    async def story():
        clock = Clock()
        async with running(clock=clock, remote=True, limits=Limits(probe_timeout_seconds=0.01)) as (cache, engines):
            setattr(engines["a"], way, True)
            with await cache.lease("a") as streaming, await cache.lease("a") as lease:
                assert not await lease.engine_is_alive()
                told = "backing off 1 s: " + ("not responding" if way == "hangs" else "unreachable")
                assert (status(cache, "a").failure, status(cache, "a").state) == (told, "failed")
                with pytest.raises(ExpertUnavailable, match=told) as refused:
                    await cache.lease("a")
                assert refused.value.retry_after_seconds == 1.0
                assert "stop" not in engines["a"].calls
                assert not await streaming.engine_is_gone(within_seconds=0)
            clock.now += 1.0
            with await cache.lease("a") as back:
                assert back.is_try
                with pytest.raises(ExpertUnavailable, match="one request tries it now"):
                    await cache.lease("a")
                back.answered()
            with await cache.lease("a") as again:
                assert not again.is_try

    run(story())


def test_failures_count_against_remote_experts_and_never_against_engines_that_run_here():
    async def story():
        async with running(remote=True) as (cache, _):
            for _ in range(3):
                assert status(cache, "a").failure is None
                cache.failures.count_remote(cache.slots["a"], "500", at_once=False)
            assert status(cache, "a").failure == "backing off 1 s: 500"
            assert cache.waits.outlooks()["a"].returns_seconds == pytest.approx(1.0, abs=0.5)
        async with running() as (cache, _):
            cache.failures.count_remote(cache.slots["a"], "503", at_once=True)
            assert status(cache, "a").failure is None

    run(story())


def test_requests_for_an_expert_in_backoff_are_refused_at_once():
    async def story():
        async with running(remote=True, limits=Limits(max_concurrency=1)) as (cache, _):
            with await cache.lease("a"):
                waiting = asyncio.create_task(cache.lease("a"))
                await settle()
                cache.failures.count_remote(cache.slots["a"], "429", at_once=True, asked_seconds=42.0)
                with pytest.raises(ExpertUnavailable, match="backing off 42 s: 429") as refused:
                    await waiting
                assert refused.value.retry_after_seconds == 42.0

    run(story())


def test_a_try_that_is_given_up_leaves_the_next_request_to_try():
    async def story():
        clock = Clock()
        async with running(clock=clock, remote=True, limits=Limits(max_concurrency=1)) as (cache, _):
            with await cache.lease("a"):
                cache.failures.count_remote(cache.slots["a"], "429", at_once=True)
                clock.now += 1.0
                waiting = asyncio.create_task(cache.lease("a"))
                await settle()
                waiting.cancel()
                await settle()
            with await cache.lease("a") as lease:
                assert lease.is_try

    run(story())


def test_how_long_an_answer_takes_is_learned_from_answers_not_from_failures_or_loads():
    async def story():
        clock = Clock()
        async with running(clock=clock, limits=Limits(queue_limit=2, max_concurrency=1)) as (cache, _):
            with await cache.lease("a") as lease:
                clock.now += 8.0
                lease.answered()
            await cache.controls.load("a")
            with await cache.lease("a"):
                pass  # it failed at once
            assert cache.slots.measured_costs()["a"]["service"] == 8.0
            first, *waiting = [asyncio.create_task(cache.lease("a")) for _ in range(3)]
            await settle()
            with pytest.raises(Overloaded) as refused:
                await cache.lease("a")
            assert refused.value.retry_after_seconds == 3 * 8.0
            for task in waiting:
                task.cancel()
            (await first).release()

    run(story())


def test_an_operator_can_load_unload_and_pin():
    async def story():
        async with running() as (cache, engines):
            await cache.controls.load("a")
            assert status(cache, "a").residency == "device"
            with (
                await cache.lease("a"),
                pytest.raises(ExpertBusy, match="cannot be evicted: it is in use by 1 requests"),
            ):
                cache.controls.unload("a")
            cache.controls.pin("a", Tier.HOST)
            with pytest.raises(ExpertBusy, match="is pinned to host"):
                cache.controls.unload("a")
            cache.controls.pin("a", Tier.DISK)
            cache.controls.unload("a")
            await settle()
            assert engines["a"].calls == ["start", "stop"]

    run(story())


def test_a_restart_waits_for_the_answers_in_progress_and_new_requests_wait_for_the_new_engine():
    async def story():
        async with running() as (cache, engines):
            answering = await cache.lease("a")
            restart = asyncio.create_task(cache.controls.restart("a"))
            await settle()
            late = asyncio.create_task(cache.lease("a"))
            await settle()
            assert status(cache, "a").state is State.DRAINING
            assert not late.done()
            assert engines["a"].calls == ["start"]
            answering.release()
            (await late).release()
            await restart
            assert engines["a"].calls == ["start", "stop", "start"]

    run(story())


def test_a_restart_starts_a_sleeping_expert_anew_and_one_that_is_on_disk():
    async def story():
        async with running() as (cache, engines):
            await cache.controls.restart("a")
            assert engines["a"].calls == ["start"]
            await cache.controls.load("b")
            assert status(cache, "a").residency == "host"
            await cache.controls.restart("a")
            assert engines["a"].calls == ["start", "sleep", "stop", "start"]

    run(story())


def test_an_engine_that_dies_before_its_restart_is_started_once():
    async def story():
        async with running() as (cache, engines):
            answering = await cache.lease("a")
            restart = asyncio.create_task(cache.controls.restart("a"))
            await settle()
            engines["a"].die()
            await restart
            answering.release()
            (await cache.lease("a")).release()
            assert engines["a"].calls.count("start") == 2

    run(story())


def test_an_expert_that_is_answered_elsewhere_is_neither_unloaded_nor_pinned_nor_restarted():
    async def story():
        async with running(remote=True) as (cache, _):
            with pytest.raises(ExpertBusy, match="is remote"):
                await cache.controls.restart("a")
            with pytest.raises(ExpertBusy, match="is remote"):
                cache.controls.unload("a")
            with pytest.raises(ExpertBusy, match="is remote"):
                cache.controls.pin("a", Tier.DISK)
            assert status(cache, "a").residency == "remote"

    run(story())


def test_an_urgent_request_overtakes_and_a_batch_request_is_not_forgotten():
    async def story():
        clock = Clock()
        async with running(limits=Limits(max_wait_seconds=10, max_concurrency=1), clock=clock) as (cache, _):
            first = await cache.lease("a")
            order = []

            async def ask(name, priority):
                with await cache.lease("a", priority):
                    order.append(name)

            tasks = [asyncio.create_task(ask("batch", "batch"))]
            await settle()
            clock.now += 6
            tasks += [asyncio.create_task(ask("normal", "normal")), asyncio.create_task(ask("high", "high"))]
            await settle()
            first.release()
            await asyncio.gather(*tasks)
            assert order == ["high", "batch", "normal"]

    run(story())


def test_a_full_house_refuses_too():
    async def story():
        async with running(limits=Limits(queue_limit_total=2)) as (cache, engines):
            engines["a"].gate.clear()
            waiting = [asyncio.create_task(cache.lease(name)) for name in "ab"]
            await settle()
            with pytest.raises(Overloaded, match="2 requests already wait"):
                await cache.lease("a")
            engines["a"].gate.set()
            for task in waiting:
                (await task).release()

    run(story())


def test_a_request_that_need_not_wait_is_admitted_though_the_queues_are_full():
    async def story():
        async with running(device=20, limits=Limits(queue_limit_total=1, max_concurrency=2)) as (cache, engines):
            with await cache.lease("a"):
                engines["b"].gate.clear()
                waiting = asyncio.create_task(cache.lease("b"))
                await settle()
                (await cache.lease("a")).release()
                with await cache.lease("a"), pytest.raises(Overloaded, match="1 requests already wait"):
                    await cache.lease("a")
            engines["b"].gate.set()
            (await waiting).release()

    run(story())


def test_an_evicted_expert_is_prefetched_when_there_is_room():
    clock = count(0.0, 0.001).__next__  # on a busy machine a move may be measured as slow, and is not worth it then

    async def story():
        async with running("abc", device=20, clock=clock) as (cache, engines):
            for name in "abc":
                (await cache.lease(name)).release()  # a had to leave for c
            assert status(cache, "a").residency == "host"
            engines["b"].die()
            await settle()
            assert status(cache, "a").residency == "device"
            assert (cache.guesses.begun["device"], cache.guesses.useful["device"]) == (1, 0)
            with await cache.lease("a") as lease:
                assert lease.waited_seconds < 0.01
            assert (cache.guesses.begun["device"], cache.guesses.useful["device"]) == (1, 1)
            assert status(cache, "b").residency == "disk"

    run(story())


def test_an_idle_expert_makes_room_before_another_is_requested():
    async def story():
        async with running("abcdef", costs={"wake": 0.4, "sleep": 0.3}) as (cache, engines):
            for name in "abcdef":
                (await cache.lease(name)).release()
            await settle()
            assert [status(cache, name).residency for name in "abcdef"] == ["host"] * 6
            assert engines["f"].calls == ["start", "sleep"]
            assert cache.guesses.begun["device"] == 0  # no expert was prefetched

    run(story())


def test_an_expert_that_left_by_an_operators_wish_does_not_come_back_on_a_guess():
    async def story():
        async with running("ab", device=20, costs={"wake": 0.4, "sleep": 0.3}) as (cache, engines):
            for name in "abab":
                (await cache.lease(name)).release()
            cache.controls.unload("a")
            await settle()
            assert engines["a"].calls == ["start", "stop"]

    run(story())


def test_a_prefetch_is_given_up_for_a_waiting_request():
    async def story():
        async with running("abc", device=20, host=30, costs={"start": 40.0}) as (cache, engines):
            for name in "abbc":  # b is worth more: a has to go to disk for c
                (await cache.lease(name)).release()
            engines["a"].gate.clear()
            engines["b"].die()
            await settle()
            assert engines["a"].calls == ["start", "stop", "start"]  # and it hangs in there
            (await cache.lease("b")).release()
            assert engines["a"].calls[-1] == "stop"
            assert cache.guesses.useful["device"] == 0
            assert cache.guesses.wasted["device"] == 1

    run(story())


def test_a_prefetch_that_is_given_up_lets_the_expert_evicted_for_it_fall_asleep():
    async def story():
        async with running("abc", device=10, host=30, costs={"start": 40.0}) as (cache, engines):
            for name in "aaaabc":  # there are two processes at a time: a was stopped for c
                (await cache.lease(name)).release()
            engines["c"].gate.clear()
            engines["b"].die()
            await settle()
            assert engines["c"].calls == ["start", "sleep"]  # to make room for a, which is likely to be next
            assert status(cache, "a").state is State.STARTING
            waits = asyncio.create_task(cache.lease("b"))
            await settle()
            assert status(cache, "a").state is State.DISK
            engines["c"].gate.set()
            (await waits).release()
            assert engines["c"].calls == ["start", "sleep"]
            assert engines["a"].calls == ["start", "sleep", "stop"]
            assert cache.guesses.wasted["device"] == 1

    run(story())


def test_requests_that_a_draining_expert_holds_back_keep_their_place_among_the_overdue():
    """Otherwise an expert that drains for one after another would make its own requests wait behind all of them."""

    async def story():
        clock = Clock()
        limits = Limits(max_wait_seconds=100, max_concurrency=1)
        async with running("abc", limits=limits, clock=clock) as (cache, _):
            first = await cache.lease("a")
            order = []

            async def ask(name):
                with await cache.lease(name):
                    order.append(name)

            tasks = []
            for name in "abc":  # a is full; b comes later and soon is worth a switch: a drains
                tasks.append(asyncio.create_task(ask(name)))
                await settle()
                clock.now += 40
            assert status(cache, "a").state is State.DRAINING
            clock.now += 100  # all three are overdue, a's request first
            first.release()
            await asyncio.gather(*tasks)
            assert order == ["a", "b", "c"]

    run(story())


def test_no_expert_takes_the_room_that_an_overdue_one_waits_for():
    async def story():
        async with running("abcd", device=20, c=Footprint(20, 0, 10, 5)) as (cache, engines):
            first, second = await cache.lease("a"), await cache.lease("b")
            large = asyncio.create_task(cache.lease("c"))
            await overdue(cache, "a", "b")  # it needs both places
            first.release()
            small = []
            for name in "da":
                small.append(asyncio.create_task(cache.lease(name)))
                await settle()
                assert not small[-1].done()
            assert (engines["a"].calls, engines["d"].calls) == (["start"], [])
            second.release()
            (await large).release()
            for one in small:
                (await one).release()
            assert engines["c"].calls[0] == "start"

    run(story())


def test_a_lease_that_is_lost_says_so():
    lease = Lease("a", FakeEngine("a", None, Memory(Bytes())), None, asyncio.Event(), 0.0)
    with pytest.warns(ResourceWarning, match="lease of expert 'a' was never released"):
        del lease


requests = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.integers(0, 6),  # turns of the loop before it arrives
        st.integers(0, 6),  # turns of the loop it keeps the lease
        st.one_of(st.none(), st.integers(0, 8)),  # turns after which the caller gives up
    ),
    max_size=25,
)
faults = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["start", "sleep", "wake", "die"])), max_size=4)


wishes = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["load", "unload", "restart", *Tier]), st.integers(0, 12)),
    max_size=4,
)


async def one_request(cache, engine, delay, hold):
    for _ in range(delay):
        await asyncio.sleep(0)
    try:
        with await cache.lease(engine.name):
            life = engine.life
            with life.in_use():
                for _ in range(hold):
                    await asyncio.sleep(0)
            return "dead" if life.over.is_set() else "served"
    except ExpertUnavailable:
        return "refused"


def break_things(engines, broken):
    for name, fault in broken:
        if fault == "die":
            asyncio.get_running_loop().call_later(0.001, engines[name].die)
        else:
            engines[name].fail.add(fault)


async def one_wish(cache, name, act, delay):
    """An operator's; where it cannot be granted now, nothing is done."""
    for _ in range(delay):
        await asyncio.sleep(0)
    with suppress(ExpertBusy, NoRoom, ExpertUnavailable):
        match act:
            case "unload":
                cache.controls.unload(name)
            case "load":
                await cache.controls.load(name)
            case "restart":
                await cache.controls.restart(name)
            case tier:
                cache.controls.pin(name, tier)


async def traffic_ends_clean(cache, engines, traffic, broken, wishes):
    break_things(engines, broken)
    operator = [asyncio.create_task(one_wish(cache, *wish)) for wish in wishes]
    tasks = []
    for name, delay, hold, patience in traffic:
        tasks.append(asyncio.create_task(one_request(cache, engines[name], delay, hold)))
        if patience is not None:
            asyncio.get_running_loop().call_later(patience * 0.0002, tasks[-1].cancel)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {o for o in outcomes if not isinstance(o, asyncio.CancelledError)} <= {"served", "refused", "dead"}
    assert broken or "refused" not in outcomes
    await asyncio.gather(*operator)
    await settle()
    for slot in cache.slots.values():
        assert (slot.leases, len(slot.waiters)) == (0, 0)
        if slot.moving is None:
            assert cache.ledger.held(slot.name) == bytes_in(slot.engine.footprint, slot.tier)


@examples(150)
@given(requests, faults, wishes, st.integers(20, 40), st.integers(15, 60))
def test_under_random_traffic_wishes_and_faults_no_promise_is_broken(traffic, broken, wishes, device, host):
    """No tier over capacity (the fakes' memory), no leased expert moved (the fakes' users), no lease left."""

    async def story():
        limits = Limits(max_wait_seconds=0.002, queue_limit=1000, max_concurrency=2)
        async with running("abcd", device=device, host=host, limits=limits, a=Footprint(20, 1, 10, 5)) as (
            cache,
            engines,
        ):
            await traffic_ends_clean(cache, engines, traffic, broken, wishes)

    run(story())
