"""Experts that come, change and go while others serve: what each request gets, and what nothing else notices."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.slot import Expert, State
from coe_server.cache.tiers import Bytes, Tier
from coe_server.cache.turnover import Terms, Turnover, why_not
from coe_server.engines.engine import Footprint
from coe_server.errors import ExpertUnavailable, NoRoom, UnknownModel
from tests.cache.fakes import FakeEngine, Memory
from tests.cache.test_expert_cache import PLENTY, Faults, break_things, faults, run, settle, status
from tests.examples import examples

TEN = Footprint(device_awake=10, host_process=10, host_image=5)


class Stage:
    """A cache, and the engines of each expert, the newest last."""

    def __init__(self, cache, memory):
        self.cache = cache
        self.memory = memory
        self.engines = {}

    def expert(self, name, footprint=TEN, **settings):
        """A new engine holds memory beside the last one of its name, if that was not stopped."""
        told = self.engines.setdefault(name, [])
        engine = FakeEngine(f"{name}{len(told)}", footprint, self.memory)
        told.append(engine)
        return Expert(name, engine, **settings)

    def turn(self, **news):
        self.cache.roster.take_over(Turnover(**news))

    @property
    def names(self):
        return tuple(self.cache.slots)


@asynccontextmanager
async def staged(names="ab", device=10, host=100, limits=PLENTY):
    memory = Memory(Bytes(device, host))
    stage = Stage(None, memory)
    stage.cache = cache = ExpertCache([stage.expert(name) for name in names], memory.capacity, limits)
    conductor, seen = asyncio.create_task(cache.run()), Faults()
    try:
        yield stage
    finally:
        for engines in stage.engines.values():
            for engine in engines:
                engine.gate.set()
                engine.calls.append("closing")
        conductor.cancel()
        with pytest.raises(asyncio.CancelledError):
            await conductor
        assert cache.ledger.used == Bytes()
        assert memory.broken_promises == []
        assert seen.messages == []


def told(cache):
    return [(one.fields["change"], one.fields["expert"]) for one in cache.events._events["expert"]]


def test_a_new_expert_is_on_disk_and_answers_its_first_request():
    async def story():
        async with staged() as stage:
            stage.turn(added=(stage.expert("c"),), order=("c", "a", "b"))
            assert stage.names == ("c", "a", "b")
            assert status(stage.cache, "c").state is State.DISK
            with await stage.cache.lease("c") as lease:
                assert lease.engine is stage.engines["c"][0]
            assert told(stage.cache) == [("added", "c")]

    run(story())


def test_a_new_expert_is_preloaded_where_that_is_its_setting():
    async def story():
        async with staged(device=20) as stage:
            await stage.cache.ready.wait()
            stage.turn(added=(stage.expert("c", preload=Tier.DEVICE), stage.expert("d", preload=Tier.HOST)))
            await settle()
            assert [status(stage.cache, name).residency for name in "cd"] == ["device", "host"]

    run(story())


def test_a_new_expert_waits_for_memory_that_is_seen_to_be_free():
    async def story():
        async with staged() as stage:
            held = await stage.cache.lease("a")
            stage.turn(added=(stage.expert("c"),))
            waiting = asyncio.create_task(stage.cache.lease("c"))
            await settle()
            assert stage.engines["c"][0].calls == []
            held.release()
            with await waiting:
                assert stage.engines["a"][0].calls[-1] == "sleep"

    run(story())


def test_a_removed_expert_answers_what_was_asked_of_it_and_then_holds_nothing():
    async def story():
        async with staged() as stage:
            held = [await stage.cache.lease("a") for _ in range(PLENTY.max_concurrency)]
            queued = asyncio.create_task(stage.cache.lease("a"))
            await settle()
            stage.turn(removed=("a",))
            await settle()
            assert status(stage.cache, "a").state is State.DRAINING
            for lease in held:
                lease.release()
            with await queued as lease:
                assert lease.engine is stage.engines["a"][0]
            await settle()
            assert stage.names == ("b",)
            assert stage.engines["a"][0].calls == ["start", "stop"]
            assert stage.cache.ledger.used == Bytes()
            assert told(stage.cache) == [("removed", "a")]
            for ask in (stage.cache.lease, stage.cache.controls.load):
                with pytest.raises(UnknownModel, match="unknown expert 'a'; known: b"):
                    await ask("a")
            assert len(stage.cache.waits.outlooks()) == 1
            assert [slot.name for slot in stage.cache.slots.values()] == ["b"]
            with await stage.cache.lease("b"):
                pass

    run(story())


def test_an_operator_cannot_move_an_expert_that_leaves():
    async def story():
        async with staged() as stage:
            held = await stage.cache.lease("a")
            stage.turn(removed=("a",))
            with pytest.raises(UnknownModel):
                stage.cache.controls.pin("a", Tier.DEVICE)
            with pytest.raises(UnknownModel):
                await stage.cache.controls.load("a")
            held.release()

    run(story())


def test_a_lease_whose_expert_died_and_is_gone_is_given_back_in_vain():
    async def story():
        async with staged() as stage:
            lease = await stage.cache.lease("a")
            stage.turn(removed=("a",))
            stage.engines["a"][0].die()
            await settle()
            assert "a" not in stage.cache.slots
            stage.turn(added=(stage.expert("a"),))
            lease.suspect_engine()
            lease.answered()
            lease.release()
            with await stage.cache.lease("a") as other:
                assert other.engine is stage.engines["a"][1]

    run(story())


def test_a_changed_expert_ends_its_leases_first_and_new_requests_get_the_new_engine():
    async def story():
        async with staged() as stage:
            held = [await stage.cache.lease("a") for _ in range(PLENTY.max_concurrency)]
            queued = asyncio.create_task(stage.cache.lease("a"))
            await settle()
            stage.turn(changed=(stage.expert("a"),))
            new = asyncio.create_task(stage.cache.lease("a"))
            await settle()
            held.pop().release()
            with await queued as lease:
                assert lease.engine is stage.engines["a"][0], "it waited before, and keeps the bound it was promised"
                await settle()
                assert not new.done()
            for lease in held:
                lease.release()
            with await new as lease:
                assert lease.engine is stage.engines["a"][1]
            assert stage.engines["a"][0].calls == ["start", "stop"]
            assert told(stage.cache) == [("changed", "a")]

    run(story())


def test_a_later_request_of_higher_priority_does_not_get_the_engine_that_goes():
    async def story():
        async with staged() as stage:
            held = [await stage.cache.lease("a") for _ in range(PLENTY.max_concurrency)]
            queued = asyncio.create_task(stage.cache.lease("a", "batch"))
            await settle()
            stage.turn(changed=(stage.expert("a"),))
            new = asyncio.create_task(stage.cache.lease("a", "high"))
            await settle()
            for lease in held:
                lease.release()
            with await queued as lease:
                assert lease.engine is stage.engines["a"][0]
                assert not new.done()
            with await new as lease:
                assert lease.engine is stage.engines["a"][1]

    run(story())


def test_a_changed_expert_that_sleeps_is_stopped_and_its_successor_starts():
    async def story():
        async with staged(host=1000) as stage:
            for name in "ab":
                (await stage.cache.lease(name)).release()
            await settle()
            stage.turn(changed=(stage.expert("a"),))
            await settle()
            assert stage.engines["a"][0].calls == ["start", "sleep", "stop"]
            with await stage.cache.lease("a") as lease:
                assert lease.engine is stage.engines["a"][1]

    run(story())


def test_an_expert_that_is_changed_twice_gets_the_newest_engine_and_one_restart():
    async def story():
        async with staged() as stage:
            held = await stage.cache.lease("a")
            for _ in range(2):
                stage.turn(changed=(stage.expert("a"),))
            held.release()
            with await stage.cache.lease("a") as lease:
                assert lease.engine is stage.engines["a"][2]
            assert stage.engines["a"][1].calls == []

    run(story())


def test_an_expert_that_is_removed_and_added_again_goes_on_with_its_new_engine():
    async def story():
        async with staged() as stage:
            held = await stage.cache.lease("a")
            stage.turn(removed=("a",))
            stage.turn(added=(stage.expert("a"),))
            held.release()
            with await stage.cache.lease("a") as lease:
                assert lease.engine is stage.engines["a"][1]
            assert "a" in stage.names

    run(story())


def test_a_remote_expert_is_exchanged_and_goes():
    async def story():
        async with staged() as stage:
            stage.turn(added=(stage.expert("r", Footprint(0), remote=True),))
            held = await stage.cache.lease("r")
            stage.turn(changed=(stage.expert("r", Footprint(0), remote=True),))
            waiting = asyncio.create_task(stage.cache.lease("r"))
            await settle()
            held.release()
            with await waiting as lease:
                assert lease.engine is stage.engines["r"][1]
            stage.turn(removed=("r",))
            await settle()
            assert [engine.calls for engine in stage.engines["r"]] == [["stop"], ["stop"]]
            assert "r" not in stage.names
            stage.turn(changed=(stage.expert("a", Footprint(0), remote=True),))
            await settle()
            assert status(stage.cache, "a").residency == "remote"
            stage.turn(changed=(stage.expert("a"),))
            with await stage.cache.lease("a") as lease:
                assert lease.engine is stage.engines["a"][2]

    run(story())


def test_what_needs_no_restart_applies_at_once():
    async def story():
        async with staged("abc", device=20) as stage:
            await stage.cache.ready.wait()
            with await stage.cache.lease("a"):
                terms = {"a": Terms(Tier.DEVICE, Tier.DEVICE, None), "b": Terms(None, Tier.DEVICE, 9.0)}
                stage.turn(adjusted=terms)
                assert status(stage.cache, "a").pin is Tier.DEVICE
                assert stage.cache.slots["b"].expert.ttl_seconds == 9.0
            await settle()
            assert stage.engines["b"][0].calls == ["start"], "it is preloaded"
            stage.turn(adjusted={"a": Terms(Tier.DISK, Tier.DISK, None)})
            with await stage.cache.lease("b"), await stage.cache.lease("c"):
                assert stage.engines["a"][0].calls == ["start", "sleep"]

    run(story())


def test_names_that_share_an_engine_come_and_go_without_it():
    async def story():
        async with staged() as stage:
            stage.turn(bases={"thinker": "a"})
            held = await stage.cache.lease("thinker")
            stage.turn(bases={})
            assert stage.cache.slots["thinker"] is stage.cache.slots["a"], "its last requests still find it"
            assert "thinker" not in stage.cache.slots.bases
            held.release()
            assert told(stage.cache) == [("added", "thinker"), ("removed", "thinker")]

    run(story())


def test_a_turnover_that_does_not_fit_changes_nothing():
    async def story():
        async with staged() as stage:
            with pytest.raises(NoRoom, match=r"experts\.c: expert 'c' needs .* of device memory"):
                stage.turn(added=(stage.expert("c", Footprint(device_awake=11)),), removed=("b",))
            assert stage.names == ("a", "b")
            with await stage.cache.lease("b"):
                pass

    run(story())


@pytest.mark.parametrize(
    ("news", "sentence"),
    [
        ({"added": {"c": {"pin": Tier.DEVICE}}}, "experts.a: expert 'a' needs"),
        ({"added": {"c": {"footprint": Footprint(11)}}}, "experts.c: expert 'c' needs"),
        ({"added": {"c": {"footprint": Footprint(1, host_image=200)}}}, "experts.c: expert 'c' needs"),
        ({"changed": {"a": {"footprint": Footprint(11)}}}, "experts.a: expert 'a' needs"),
        ({"added": {"c": {"pin": Tier.DEVICE}}, "removed": ("a", "b")}, None),
        ({"added": {"c": {}}}, None),
        ({"added": {"c": {"footprint": Footprint(0), "remote": True}}}, None),
        ({"removed": ("a",)}, None),
    ],
)
def test_what_does_not_fit_at_the_end_is_told_in_a_sentence(news, sentence):
    async def story():
        async with staged() as stage:
            made = {
                key: tuple(stage.expert(name, **one) for name, one in news.get(key, {}).items())
                for key in ("added", "changed")
            }
            turnover = Turnover(**made, removed=news.get("removed", ()))
            why = why_not(turnover, stage.cache.slots, stage.cache.ledger.capacity)
            assert why is None if sentence is None else why is not None and why.startswith(sentence), why

    run(story())


def test_an_expert_with_waiting_requests_must_fit_beside_the_pins_on_the_way():
    async def story():
        async with staged() as stage:
            held = await stage.cache.lease("b")
            waiting = asyncio.create_task(stage.cache.lease("a"))
            await settle()
            pinned = stage.expert("c", pin=Tier.DEVICE)
            with pytest.raises(NoRoom, match=r"experts\.a: requests wait for it as it is, and expert 'a' needs"):
                stage.turn(added=(pinned,), removed=("a", "b"))
            held.release()
            (await waiting).release()
            await settle()
            stage.turn(added=(pinned,), removed=("a", "b"))
            await settle()
            assert stage.names == ("c",)
            assert status(stage.cache, "c").residency == "device"

    run(story())


traffic = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.integers(0, 6), st.booleans()), max_size=25)
turnovers = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12), st.booleans()), max_size=6)


async def one_request(stage, name, delay, hold, gives_up):
    for _ in range(delay):
        await asyncio.sleep(0)
    if gives_up:
        asyncio.get_running_loop().call_later(0.0005, asyncio.current_task().cancel)
    try:
        with await stage.cache.lease(name) as lease, lease.engine.life.in_use():
            for _ in range(hold):
                await asyncio.sleep(0)
    except (UnknownModel, ExpertUnavailable) as error:
        return type(error)
    return None


async def turn_over(stage, name, delay, restarts):
    """The expert comes if it is not there; else it changes or goes, in turns. Or an operator restarts it."""
    for _ in range(delay):
        await asyncio.sleep(0)
    if restarts:
        with suppress(UnknownModel, ExpertUnavailable):
            await stage.cache.controls.restart(name)
        return
    slot = stage.cache.slots.get(name)
    with suppress(NoRoom):
        if slot is None or slot.leaves:
            stage.turn(added=(stage.expert(name),))
        elif len(stage.engines[name]) % 2:
            stage.turn(changed=(stage.expert(name),))
        else:
            stage.turn(removed=(name,))


@examples(150)
@given(traffic, turnovers, faults, st.sampled_from([10, 20]))
def test_no_promise_is_broken_while_experts_come_and_go(requests, turns, broken, device):
    async def story():
        async with staged("abcd", device=device, host=60) as stage:
            break_things({name: engines[0] for name, engines in stage.engines.items()}, broken)
            asked = [asyncio.create_task(one_request(stage, *one)) for one in requests]
            news = [asyncio.create_task(turn_over(stage, *one)) for one in turns]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.gather(*news)
            bad = [one for one in outcomes if isinstance(one, Exception)]
            assert bad == []
            if all(restarts for _, _, restarts in turns):
                assert UnknownModel not in outcomes
            if not broken:
                assert ExpertUnavailable not in outcomes
            await settle()
            for slot in stage.cache.slots.values():
                assert (slot.leases, len(slot.waiters), slot.leaves, slot.successor) == (0, 0, False, None)
            for engines in stage.engines.values():
                for engine in engines:
                    engine.fail.clear()
            for name in stage.names:
                await stage.cache.controls.load(name)
                assert stage.cache.slots[name].engine is stage.engines[name][-1]

    run(story())
