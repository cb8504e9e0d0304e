"""A request holds a lease for each answer it asks for: strictly in order, counted everywhere, and within the bound."""

import asyncio
import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.policy import OURS, Limits
from coe_server.cache.queue import WaitingLine
from coe_server.cache.slot import Expert, new_slot
from coe_server.cache.tiers import Tier
from coe_server.cache.wait_bound import turn_seconds
from coe_server.errors import DatasetError, Overloaded
from coe_server.simulation.comparison import measure
from coe_server.simulation.simulator import Timing, simulate
from coe_server.simulation.traces import Request, Trace, read_trace, write_trace
from tests.cache.machines import machine
from tests.cache.test_expert_cache import overdue, run, running, settle, status
from tests.examples import examples

FOUR = Limits(max_wait_seconds=0.05, queue_limit=16, max_concurrency=4)


def asking(cache, *fan_outs, priority="normal", name="a"):
    return [asyncio.create_task(cache.lease(name, priority, fan_out)) for fan_out in fan_outs]


def granted(tasks):
    return [task.done() for task in tasks]


async def give_back(tasks):
    for task in tasks:
        (await task).release()


def test_it_takes_a_lease_for_each_answer_and_gives_back_all():
    async def story():
        async with running(limits=FOUR) as (cache, _):
            one, three = await cache.lease("a"), await cache.lease("a", fan_out=3)
            assert status(cache, "a").leases == 4
            assert not cache.grants_at_once("a")
            three.release()
            assert status(cache, "a").leases == 1
            assert cache.grants_at_once("a", 3)
            assert not cache.grants_at_once("a", 4)
            one.release()
            assert status(cache, "a").leases == 0

    run(story())


def test_a_request_wider_than_the_engine_takes_all_of_it():
    async def story():
        async with running(limits=FOUR) as (cache, _):
            wide = await cache.lease("a", fan_out=100)
            assert status(cache, "a").leases == 4
            (narrow,) = asking(cache, 1)
            await settle()
            assert not narrow.done()
            wide.release()
            await give_back([narrow])

    run(story())


def test_nothing_behind_a_wide_request_goes_in_before_it():
    async def story():
        async with running(limits=FOUR) as (cache, _):
            inside = [await cache.lease("a") for _ in range(2)]
            waiting = asking(cache, 3, 1, 1)
            await settle()
            assert granted(waiting) == [False, False, False]
            inside[0].release()
            await settle()
            assert granted(waiting) == [True, False, False]
            inside[1].release()
            await settle()
            assert granted(waiting) == [True, True, False]
            await give_back(waiting)

    run(story())


def test_a_wide_request_at_the_door_is_not_overtaken_by_the_urgent_either():
    async def story():
        limits = replace(FOUR, max_wait_seconds=1000)
        async with running(limits=limits) as (cache, _):
            inside = [await cache.lease("a") for _ in range(4)]
            wide = asking(cache, 4)
            await settle()
            urgent = asking(cache, 1, priority="high")
            await settle()
            inside.pop().release()
            await settle()
            assert granted(wide + urgent) == [False, False]
            for lease in inside:
                lease.release()
            await settle()
            assert granted(wide + urgent) == [True, False]
            await give_back(wide + urgent)

    run(story())


def test_the_urgent_overtake_a_narrow_one_as_before():
    line = WaitingLine(max_wait_seconds=20)
    first = line.join(0.0, "normal", None)
    urgent = line.join(1.0, "high", None, 4)
    assert line.first() is urgent
    urgent.keep_first()
    assert line.join(2.0, "high", None) is not line.first()
    assert line.leave(urgent)
    assert line.leave(first)


def test_a_wide_request_that_leaves_lets_those_behind_it_in():
    async def story():
        async with running(limits=FOUR) as (cache, _):
            inside = await cache.lease("a")
            wide, narrow = asking(cache, 4, 2)
            await settle()
            wide.cancel()
            await settle()
            assert narrow.done()
            inside.release()
            await give_back([narrow])
            assert (status(cache, "a").leases, status(cache, "a").queued) == (0, 0)

    run(story())


def test_the_queues_count_leases():
    async def story():
        limits = Limits(queue_limit=6, queue_limit_total=9, max_concurrency=4)
        async with running(limits=limits) as (cache, engines):
            for engine in engines.values():
                engine.gate.clear()
            waiting = asking(cache, 4, 1)
            await settle()
            assert status(cache, "a").queued == 5
            with pytest.raises(
                Overloaded,
                match=r"2 requests already wait for expert 'a', for 5 answers of 6 \(scheduling.queue_limit\)",
            ):
                await cache.lease("a", fan_out=2)
            waiting += asking(cache, 1) + asking(cache, 3, name="b")
            await settle()
            with pytest.raises(Overloaded, match=r"for 9 answers of 9 \(scheduling.queue_limit_total\)"):
                await cache.lease("b")
            for engine in engines.values():
                engine.gate.set()
            await give_back(waiting)

    run(story())


def test_an_empty_queue_takes_a_request_of_any_width():
    async def story():
        async with running(limits=Limits(queue_limit=2, queue_limit_total=2, max_concurrency=8)) as (cache, engines):
            engines["a"].gate.clear()
            (wide,) = asking(cache, 8)
            await settle()
            with pytest.raises(Overloaded):
                await cache.lease("a")
            engines["a"].gate.set()
            await give_back([wide])

    run(story())


def test_what_comes_is_told_to_wait_for_all_answers_ahead():
    async def story():
        async with running(limits=FOUR) as (cache, _):
            lease = await cache.lease("a", fan_out=4)
            waiting = asking(cache, 4, 4)
            await settle()
            answer = cache.bounds.usual_answer_seconds
            assert cache.waits.predicted_seconds("a") == pytest.approx(3 * answer, rel=0.2)
            lease.release()
            await give_back(waiting)

    run(story())


def test_a_turn_is_as_long_as_the_answers_of_its_queue():
    """Others are overdue: what was queued when the turn began goes in, measured in leases, and nothing wider."""

    async def story():
        limits = replace(FOUR, max_wait_seconds=0.01)
        async with running(limits=limits) as (cache, engines):
            engines["a"].gate.clear()
            first = asking(cache, 4, 2)
            await settle()
            engines["a"].gate.set()
            await settle()
            other = asking(cache, 1, name="b")
            late = asking(cache, 1)
            await overdue(cache, "a")
            assert granted(first + late + other) == [True, False, False, False]
            (await first[0]).release()
            await settle()
            assert granted(first + late + other) == [True, True, False, False]
            (await first[1]).release()
            await give_back(other + late)

    run(story())


LIMITS = Limits(queue_limit=64, max_concurrency=16, max_generation_seconds=120)


@pytest.mark.parametrize(("widest", "rounds"), [(1, 4), (2, 5), (4, 5), (5, 6), (9, 8), (16, 8)])
def test_a_turn_with_wide_requests_takes_up_to_twice_as_many_rounds(widest, rounds):
    assert turn_seconds(LIMITS, widest) == rounds * 120


def test_no_request_is_wider_than_the_engine():
    assert turn_seconds(LIMITS, 128) == turn_seconds(LIMITS, 16) > turn_seconds(LIMITS, 3)


@given(st.data())
def test_the_rounds_are_never_more_than_stated(data):
    places = data.draw(st.integers(1, 9))
    widest = data.draw(st.integers(1, places))
    wide = data.draw(st.lists(st.integers(1, widest), min_size=1, max_size=40))
    rounds, left = 1, places
    for leases in wide:
        if leases > left:
            rounds, left = rounds + 1, places
        left -= leases
    limits = Limits(queue_limit=sum(wide), max_concurrency=places, max_generation_seconds=1)
    assert rounds <= turn_seconds(limits, widest)


def test_the_bound_that_is_stated_grows_with_the_widest_request_so_far():
    async def story():
        async with running(limits=FOUR) as (cache, _):
            before = cache.bounds.seconds()
            (await cache.lease("a", fan_out=3)).release()
            assert before < cache.bounds.seconds() <= cache.bounds.seconds(widest=cache.limits.max_fan_out)

    run(story())


IN_NO_TIME = Timing(
    start_seconds=0.1, wake_seconds=0.1, sleep_seconds=0.1, stop_seconds=0.1, ttft_seconds=0, tokens_per_second=1
)


def crowd(seed):
    """Bursts of wide requests that fill the queues, and at times narrow ones that keep coming; answers take as long
    as they may and moves next to nothing, so what is waited for is other answers."""
    r = random.Random(seed)
    places = r.choice([2, 3, 4])
    scenario = machine(
        r.choice([1, 1, 2, 3]),
        timing=IN_NO_TIME,
        prefetch=False,
        max_wait_seconds=r.choice([0.5, 20.0]),
        queue_limit=places * r.choice([2, 4]),
        max_concurrency=places,
        max_generation_seconds=4,
    )

    def one(at, fan_out):
        name, priority = r.choice(scenario.experts).name, r.choice(["normal", "normal", "normal", "high"])
        return Request(at, r.choice([4, 4, 4, 4, 1]), name, priority=priority, fan_out=fan_out)

    half = (places + 2) // 2
    burst = [one(r.choice([0.0, 0.0, 0.25, 4.0, 20.5]), r.choice([1, half, half, places])) for _ in range(36)]
    drip = [one(number * 4 / places, 1) for number in range(r.choice([0, 0, 60]))]
    requests = burst[: r.choice([6, 12, 36])] + drip
    return scenario, Trace("crowd", tuple(sorted(requests, key=lambda request: request.arrival_seconds)))


@given(st.integers(0, 2**32).map(crowd))
@examples(150)
def test_whatever_the_fan_outs_no_request_waits_longer_than_stated(stage):
    scenario, trace = stage
    played = simulate(scenario, trace, OURS)
    assert len(played.answers) + played.refused == len(trace.requests)
    assert measure(played).bound_kept


@pytest.mark.parametrize(("gate", "admits"), [(0, False), (3, False), (4, True)])
def test_what_overtakes_those_a_turn_is_for_goes_in_only_if_the_turn_grows_no_longer(gate, admits):
    slot = new_slot(Expert("a", None), Limits(max_wait_seconds=20), {})
    slot.change(tier=Tier.DEVICE, draining=True, gate=gate)
    slot.waiters.join(0.0, "normal", None, 3)
    slot.waiters.join(1.0, "high", None, 4)
    assert slot.admits is admits
    assert slot.busy is admits  # else it can leave


def one_expert(queue_limit):
    return machine(
        1,
        preload=Tier.DEVICE,
        prefetch=False,
        max_wait_seconds=0.5,
        queue_limit=queue_limit,
        max_concurrency=4,
        max_generation_seconds=100,
    )


def test_wide_and_narrow_in_turn_take_longer_than_as_many_narrow_ones_could_and_no_longer_than_stated():
    fan_outs = (4, 3, 2, 3, 2, 2)
    scenario, trace = one_expert(queue_limit=12), [Request(0.0, 100, "a", fan_out=fan_out) for fan_out in fan_outs]
    played = simulate(scenario, Trace("saw", tuple(trace)), OURS)
    assert sorted(answer.granted for answer in played.answers) == [0, 100, 200, 300, 400, 400]
    switch_seconds = played.wait_bound_seconds - 0.5 - turn_seconds(scenario.limits, 4)
    assert measure(played).wait_max > 0.5 + turn_seconds(scenario.limits) + switch_seconds
    assert measure(played).bound_kept


def test_a_wide_request_is_served_while_narrow_ones_keep_coming():
    narrow = [Request(25.0 * number, 100, "a") for number in range(40)]
    wide = Request(110.0, 100, "a", fan_out=4)
    requests = sorted([*narrow, wide], key=lambda request: request.arrival_seconds)
    played = simulate(one_expert(queue_limit=64), Trace("drip", tuple(requests)), OURS)
    (waited,) = (answer.waited for answer in played.answers if answer.arrived == 110.0)
    assert waited <= 100
    assert measure(played).bound_kept


def test_a_trace_keeps_its_fan_outs():
    trace = Trace("t", (Request(0.0, 3, "a", fan_out=4), Request(1.0, 2, "b")))
    lines = list(write_trace(trace))
    assert "fan_out" not in lines[1]
    assert read_trace("t", lines).requests == trace.requests


@pytest.mark.parametrize("fan_out", [0, -1, 1.5, "4", True, None])
def test_a_fan_out_that_is_no_count_is_a_mistake_in_the_trace(fan_out):
    line = json.dumps({"arrival_seconds": 0, "output_tokens": 1, "expert": "a", "fan_out": fan_out})
    with pytest.raises(DatasetError, match="line 1: fan_out must be a whole number >= 1, not"):
        read_trace("t", [line])
