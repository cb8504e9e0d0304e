"""Whose turn it is: overdue by deadline, then by waiting worth a switch."""

import random
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache import scheduler
from coe_server.cache.policy import FIFO, OURS, Limits, on_cards
from coe_server.cache.queue import WEIGHTS
from coe_server.cache.scheduler import Queue, Turn, conduct, seconds_until_pressing, seconds_until_tenured, turns
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier
from coe_server.engines.engine import Footprint
from tests.cache.test_planner import worlds

queues = st.lists(
    st.builds(
        Queue,
        expert=st.integers(0, 99).map(str),
        arrivals=st.lists(st.integers(0, 400).map(lambda n: n / 4), min_size=1, max_size=5).map(
            lambda times: tuple(sorted(times))
        ),
        switch_seconds=st.integers(0, 160).map(lambda n: n / 4),
        weight=st.sampled_from([*WEIGHTS.values(), 0.4, 2.5]),
        start_seconds=st.integers(0, 160).map(lambda n: n / 4),
    ),
    max_size=5,
    unique_by=lambda queue: queue.expert,
)


def test_collating_waits_until_the_waiting_is_worth_the_switch():
    queue = Queue("b", (0.0, 1.0), switch_seconds=9.0)
    assert tuple(turns([queue], now=4.0, max_wait_seconds=60)) == (Turn("b", pressing=False, overdue=False),)
    assert seconds_until_pressing([queue], 4.0, 60) == 1.0
    assert tuple(turns([queue], now=5.0, max_wait_seconds=60)) == (Turn("b", pressing=True, overdue=False),)


def test_the_overdue_come_first_in_order_of_deadline():
    late, later, long = Queue("late", (2.0,), 50), Queue("later", (1.0,), 50), Queue("long", (6.0,) * 90, 1)
    assert [turn.expert for turn in turns([late, long, later], now=12.0, max_wait_seconds=10)] == [
        "later",
        "late",
        "long",
    ]


@given(queues, st.integers(400, 800).map(lambda n: n / 4), st.integers(1, 120))
def test_everyone_overdue_is_pressing_and_ahead_of_all_others(queues, now, max_wait):
    order = tuple(turns(queues, now, max_wait))
    assert sorted(turn.expert for turn in order) == sorted(queue.expert for queue in queues)
    by_name = {queue.expert: queue for queue in queues}
    overdue = [now - by_name[turn.expert].arrivals[0] >= max_wait for turn in order]
    assert overdue == sorted(overdue, reverse=True)
    assert [turn.overdue for turn in order] == overdue
    assert all(turn.pressing for turn in order if turn.overdue)


@given(queues, st.integers(400, 800).map(lambda n: n / 4), st.integers(1, 120))
def test_at_the_moment_foretold_and_not_before_a_queue_becomes_pressing_or_overdue(queues, now, max_wait):
    def states(moment):
        return {
            (turn.expert, turn.pressing, turn.overdue, turn.may_restart) for turn in turns(queues, moment, max_wait)
        }

    seconds = seconds_until_pressing(queues, now, max_wait)
    if seconds == inf:
        assert all(pressing and overdue and may_restart for _, pressing, overdue, may_restart in states(now))
    else:
        assert states(now + seconds + 1e-6) != states(now)
        assert states(now + seconds - 1e-6) == states(now)


def test_on_several_cards_waiting_drains_no_busy_expert_until_it_is_overdue():
    queue, several = Queue("b", (0.0,), switch_seconds=1.0), on_cards(OURS, 2)
    assert on_cards(OURS, 1) == OURS
    assert tuple(turns([queue], 29.0, 30, several)) == (Turn("b", pressing=False, overdue=False),)
    assert seconds_until_pressing([queue], 29.0, 30, several) == 1.0
    assert next(turns([queue], 30.0, 30, several)).pressing


def test_a_sleeper_is_started_anew_once_it_has_been_overdue_for_as_long_as_a_start_takes():
    small = Footprint(device_awake=10, host_image=10)
    busy = Holding("busy", Tier.DEVICE, small, busy=True, seats=((0,), (1,)))
    asleep = Holding("asleep", Tier.HOST, small, wanted=True, seats=((0,), (1,)))
    queue = Queue("asleep", (0.0,), switch_seconds=1.0, start_seconds=40.0)

    def seat_at(moment):
        limits = Limits(max_wait_seconds=30)
        plans = conduct(Standing.of([busy, asleep]), [queue], Bytes((10, 10), 99), moment, limits).plans
        return [ready.moves[-1].seat for ready in plans]

    assert seat_at(69.0) == []
    assert seat_at(70.0) == [(1,)]


def test_in_strict_order_of_arrival_only_the_oldest_request_has_a_turn():
    old, new = Queue("old", (1.0,), 5), Queue("new", (2.0, 2.0), 5)
    assert next(turns([new, old], 3.0, 30, FIFO)) == Turn("old", pressing=True, overdue=False)


def test_while_an_engine_starts_no_expert_makes_room_for_the_next_start():
    small = Footprint(device_awake=10, host_image=10)
    resident = Holding("resident", Tier.DEVICE, small)
    cold, warm = Holding("cold", Tier.DISK, small), Holding("warm", Tier.HOST, small)
    wait = Limits(max_wait_seconds=10)
    late, later = Queue("cold", (0.0,), 40), Queue("warm", (1.0,), 1)

    def ordered(starts_on):
        standing = Standing.of([resident, cold._replace(wanted=True), warm._replace(wanted=True)])
        orders = conduct(standing, [late, later], Bytes(10, 99), 50.0, wait, starts_on=starts_on)
        return [ready.moves[-1].expert for ready in orders.plans]

    assert ordered(starts_on=None) == ["cold"]
    assert ordered(starts_on=(0,)) == ["warm"]


@pytest.mark.parametrize("policy", [OURS, FIFO])
def test_nothing_behind_an_overdue_turn_takes_the_room_it_waits_for(policy):
    small = Footprint(device_awake=10, host_image=10)
    busy = Holding("busy", Tier.DEVICE, small, busy=True)
    wide = Holding("wide", Tier.HOST, Footprint(device_awake=20, host_image=20), wanted=True)
    behind = Holding("behind", Tier.HOST, small, wanted=True)  # for which there is room
    queues = [Queue("wide", (0.0,), 1.0), Queue("behind", (1.0,), 1.0)]

    def ordered(now, wanted):
        standing = Standing.of([busy, wide, behind])
        return conduct(standing, wanted, Bytes(20, 99), now, Limits(max_wait_seconds=10), policy)

    orders = ordered(30.0, queues)
    assert orders.plans == ()
    assert orders.draining == {"busy"}
    assert [ready.moves[-1].expert for ready in ordered(30.0, queues[1:]).plans] == ["behind"]


def test_before_it_is_overdue_a_turn_lets_those_behind_it_have_the_room():
    small = Footprint(device_awake=10, host_image=10)
    busy = Holding("busy", Tier.DEVICE, small, busy=True)
    wide = Holding("wide", Tier.HOST, Footprint(device_awake=20, host_image=20), wanted=True)
    behind = Holding("behind", Tier.HOST, small, wanted=True)
    queues = [Queue("wide", (0.0,), 1.0), Queue("behind", (1.0,), 1.0)]
    orders = conduct(Standing.of([busy, wide, behind]), queues, Bytes(20, 99), 5.0, Limits(max_wait_seconds=10))
    assert [ready.moves[-1].expert for ready in orders.plans] == ["behind"]


def test_draining_experts_go_first_and_overdue_ones_before_the_others():
    small = Footprint(device_awake=10, host_image=10)
    draining = Holding("draining", Tier.DEVICE, small, wanted=True, leaving=True)
    away = Holding("away", Tier.HOST, small, wanted=True)

    def ordered(first, second):
        queues = [Queue("draining", (first,), 0.0), Queue("away", (second,), 1.0)]
        return conduct(Standing.of([draining, away]), queues, Bytes(10, 99), 30.0, Limits(max_wait_seconds=10))

    older_here, older_there = ordered(5.0, 6.0), ordered(6.0, 5.0)
    assert (older_here.staying, older_here.plans, older_here.draining) == ({"draining"}, (), {"draining"})
    assert older_there.staying == set()
    assert [ready.moves[-1].expert for ready in older_there.plans] == ["away"]


def test_an_expert_just_loaded_is_evicted_only_for_an_overdue_one():
    small = Footprint(device_awake=10, host_image=10)
    new = Holding("new", Tier.DEVICE, small, busy=True, wanted=True, since=20.0)
    away = Holding("away", Tier.HOST, small, wanted=True)
    limits = Limits(max_wait_seconds=60, min_tenure_seconds=15)

    def draining(now, max_wait=60):
        waited = replace(limits, max_wait_seconds=max_wait)
        return conduct(Standing.of([new, away]), [Queue("away", (0.0,), 1.0)], Bytes(10, 99), now, waited).draining

    assert draining(now=30.0) == set()
    assert draining(now=35.0) == {"new"}
    assert draining(now=30.0, max_wait=30) == {"new"}
    assert seconds_until_tenured(Standing.of([new, away]), 30.0, 15) == 5.0


@given(
    worlds(), st.lists(st.integers(0, 400).map(lambda n: n / 4), min_size=5, max_size=5), st.sampled_from([None, (0,)])
)
def test_no_two_plans_of_a_pass_move_the_same_expert(world, arrivals, starts_on):
    holdings, capacity = world
    queues = [
        Queue(holding.name, (arrived,), 1.0)
        for holding, arrived in zip(holdings, arrivals, strict=False)
        if holding.wanted and not holding.busy and (holding.leaving or holding.tier is not Tier.DEVICE)
    ]
    orders = conduct(Standing.of(holdings), queues, capacity, 100.0, Limits(max_wait_seconds=30), starts_on=starts_on)
    moved = [move.expert for ready in orders.plans for move in ready.moves]
    assert len(moved) == len(set(moved))


KINDS = [Footprint(device_awake=size, host_image=image) for size, image in ((10, 10), (10, 12), (6, 6))]


def crowd(chance):
    """A full device, and many who wait for room on it, most of them alike; what they need a switch for costs time."""
    sizes = chance.sample(KINDS, chance.randint(1, 2))
    here = [
        Holding(f"here {at}", Tier.DEVICE, chance.choice(sizes), busy=chance.random() < 0.7, worth=chance.random())
        for at in range(chance.randint(1, 3))
    ]
    away = []
    for at in range(chance.randint(2, 6)):
        tier = chance.choice([Tier.HOST, Tier.HOST, Tier.DISK])
        pin, worth = chance.choice([Tier.DISK, Tier.DISK, tier]), chance.random()
        away.append(Holding(f"away {at}", tier, chance.choice(sizes), wanted=True, worth=worth, pin=pin))
    queues = [Queue(one.name, (chance.uniform(0, 99),), chance.uniform(1, 99)) for one in away]
    standing = Standing.of([*here, *away])
    return standing, queues, standing.used + Bytes(chance.randint(0, 8), chance.randint(0, 12))


@pytest.mark.parametrize("starts_on", [(0,), None])
def test_planning_once_for_all_experts_that_need_the_same_room_gives_the_same_order(starts_on, monkeypatch):
    class Forgetful(scheduler._Orders):
        def _bring(self, *turn):
            self._in_vain.clear()
            return super()._bring(*turn)

    chance = random.Random(0)
    for _ in range(3000):
        standing, queues, capacity = crowd(chance)
        how = {"now": 100.0, "limits": Limits(max_wait_seconds=80), "starts_on": starts_on}
        once = conduct(standing, queues, capacity, **how)
        with monkeypatch.context() as patched:
            patched.setattr(scheduler, "_Orders", Forgetful)
            assert conduct(standing, queues, capacity, **how) == once


def test_an_expert_demoted_for_a_start_is_not_started_in_the_same_pass():
    small = Footprint(device_awake=10, host_image=10)
    idle, asleep = Holding("idle", Tier.DEVICE, small), Holding("asleep", Tier.HOST, small, wanted=True)
    cold = Holding("cold", Tier.DISK, small, wanted=True)
    queues = [Queue("cold", (0.0,), 40), Queue("asleep", (1.0,), 1)]
    orders = conduct(Standing.of([idle, asleep, cold]), queues, Bytes(30, 20), 50.0, Limits(max_wait_seconds=10))
    assert [[move.expert for move in ready.moves] for ready in orders.plans] == [["asleep", "cold"]]
    assert orders.draining == set()
