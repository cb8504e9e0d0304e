"""Prefetching: each move shortens the next request's expected wait, no expert that must stay is moved, and it ends."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.prefetch import LEAST_GAIN, Guess, Prospect, prefetch
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier, bytes_in
from coe_server.engines.engine import Footprint
from tests.cache.test_expert_cache import PLENTY, run, running, settle, status


def prospect(name, tier, up=0.4, down=0.3, **more):
    return Prospect(Holding(name, tier, Footprint(10, host_image=10), **more), up, down)


def free(prospects, device=20, host=100):
    return Bytes(device, host) - Standing.of(one.holding for one in prospects).used


def moves(prospects, chances, **room):
    way = guess(prospects, chances, free(prospects, **room))
    return [] if way is None else [(move.expert, move.target) for move in way.moves]


def test_the_unlikely_makes_room_so_that_the_next_one_need_not_wait_for_its_sleep():
    chances = {"a": 0.24, "b": 0.24, "c": 0.24, "d": 0.08, "e": 0.2}
    world = [*(prospect(name, Tier.HOST) for name in "abc"), *(prospect(name, Tier.DEVICE) for name in "de")]
    assert moves(world, chances) == [("d", Tier.HOST)]
    assert moves([replace(one, holding=one.holding._replace(pin=Tier.DEVICE)) for one in world], chances) == []


def test_the_likely_comes_in_the_place_of_the_unlikely():
    world, chances = [prospect("a", Tier.HOST), prospect("b", Tier.DEVICE), prospect("c", Tier.DEVICE)], {"a": 0.9}
    chances |= {"b": 0.05, "c": 0.05}
    assert moves(world, chances) in ([("b", Tier.HOST), ("a", Tier.DEVICE)], [("c", Tier.HOST), ("a", Tier.DEVICE)])
    used = [world[0], *(replace(one, holding=one.holding._replace(busy=True)) for one in world[1:])]
    assert moves(used, chances) == []


def test_no_expert_is_stopped_to_spare_a_sleep_when_its_return_is_a_cold_start():
    stuck = Prospect(Holding("a", Tier.DEVICE, Footprint(10)), up_seconds=40, down_seconds=1)
    assert moves([stuck, prospect("b", Tier.HOST, up=0.4)], {"a": 0.1, "b": 0.9}, device=10) == []


@st.composite
def worlds(draw, most=5):
    names = "abcde"[: draw(st.integers(1, most))]
    weights = [draw(st.integers(1, 20)) for _ in names]
    tiers = [draw(st.sampled_from([Tier.DEVICE, Tier.HOST])) for _ in names]
    world = [
        prospect(
            name,
            tier,
            up=draw(st.sampled_from([0.2, 0.4, 2.0])),
            down=draw(st.sampled_from([0.1, 0.3, 3.0])),
            busy=tier is Tier.DEVICE and draw(st.booleans()),
            pin=draw(st.sampled_from([Tier.DEVICE, Tier.DISK])) if tier is Tier.DEVICE else Tier.DISK,
        )
        for name, tier in zip(names, tiers, strict=True)
    ]
    chances = {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}
    return world, chances, max(10, 10 * draw(st.integers(0, 3)) + Standing.of(one.holding for one in world).used.device)


def guess(prospects, chances, free):
    here = [one for one in prospects if one.holding.tier is Tier.DEVICE]
    away = {one.holding.name: one for one in prospects if one.holding.tier is not Tier.DEVICE}
    return prefetch(here, away, chances, free)


def after(prospects, changes):
    return [
        replace(one, holding=one.holding._replace(tier=changes.get(one.holding.name, one.holding.tier)))
        for one in prospects
    ]


def expected_wait(prospects, chances, device):
    """The next request's expected wait, by hand: its expert's move up, after an eviction if there is no room."""
    room = device - 10 * sum(one.holding.tier is Tier.DEVICE for one in prospects) >= 10
    leaving = 0.0 if room else min(one.down_seconds for one in prospects)
    return sum(
        chances[one.holding.name] * (one.up_seconds + leaving)
        for one in prospects
        if one.holding.tier is not Tier.DEVICE
    )


def all_changes(prospects, device):
    """Who may leave, who may come, and both where there is no room."""
    idle = [one.holding.name for one in prospects if one.holding.tier is Tier.DEVICE and one.may_leave]
    away = [one.holding.name for one in prospects if one.holding.tier is not Tier.DEVICE]
    yield from ({name: Tier.HOST} for name in idle)
    if device - 10 * (len(prospects) - len(away)) >= 10:
        yield from ({name: Tier.DEVICE} for name in away)
    else:
        yield from ({other: Tier.HOST, name: Tier.DEVICE} for other in idle for name in away)


def stake(prospects, chances, changes):
    """Seconds of the moves, times the chance that the next request is for an expert that is away or is evicted."""
    seconds = sum(
        one.down_seconds if changes[one.holding.name] is Tier.HOST else one.up_seconds
        for one in prospects
        if one.holding.name in changes
    )
    leaving = {name for name, tier in changes.items() if tier is Tier.HOST}
    return seconds * sum(
        chances[one.holding.name]
        for one in prospects
        if one.holding.tier is not Tier.DEVICE or one.holding.name in leaving
    )


@given(worlds(most=4))
def test_of_what_is_worth_its_moves_that_is_done_which_saves_the_next_request_the_most_seconds(world):
    prospects, chances, device = world
    way = guess(prospects, chances, free(prospects, device=device))
    before = expected_wait(prospects, chances, device)

    def saved(changes):
        return before - expected_wait(after(prospects, changes), chances, device)

    def worth_it(changes, rounding):
        return saved(changes) > max(LEAST_GAIN * stake(prospects, chances, changes), 0.001) + rounding

    others = [changes for changes in all_changes(prospects, device) if worth_it(changes, rounding=1e-9)]
    if way is None:
        assert not others
        return
    changes = {move.expert: move.target for move in way.moves}
    assert worth_it(changes, rounding=-1e-9)
    assert saved(changes) > max(map(saved, others), default=0.0) - 1e-9


@given(worlds())
def test_guessing_comes_to_an_end_fits_and_leaves_the_busy_and_the_pinned_alone(world):
    prospects, chances, device = world
    for _ in range(2 ** len(prospects)):
        way = guess(prospects, chances, free(prospects, device=device))
        if way is None:
            return
        named = {one.holding.name: one for one in prospects}
        for move in way.moves:
            holding = named[move.expert].holding
            assert not holding.busy
            assert move.target.depth <= holding.pin.depth
            assert move.source is holding.tier
            named[move.expert] = replace(named[move.expert], holding=holding._replace(tier=move.target))
        prospects = list(named.values())
        assert sum(bytes_in(one.holding.footprint, one.holding.tier).device for one in prospects) <= device
    raise AssertionError("it went on guessing for ever")


@pytest.mark.parametrize("sleep", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("wake", [0.1, 0.5, 1.0])
def test_an_expert_that_has_just_answered_is_not_put_to_sleep_before_its_second_request(sleep, wake):
    async def story():
        limits = replace(PLENTY, max_wait_seconds=60.0)
        async with running("abcde", device=20, host=45, limits=limits, costs={"wake": wake, "sleep": sleep}) as (
            cache,
            _,
        ):
            for name in "abcde":
                (await cache.lease(name)).release()
                await settle()
                assert status(cache, name).residency == "device"
                (await cache.lease(name)).release()
                await settle()

    run(story())


@pytest.mark.parametrize(("next_one", "outcome"), [("a", "useful"), ("f", "wasted")])
def test_room_that_was_made_on_a_guess_is_useful_to_another_and_wasted_on_the_one_that_made_it(next_one, outcome):
    async def story():
        async with running("abcdef", costs={"wake": 0.4, "sleep": 0.3}) as (cache, engines):
            for name in "abcdef":
                (await cache.lease(name)).release()
            await settle()
            assert engines["f"].calls == ["start", "sleep"]
            found = cache.guesses
            before = {which: getattr(found, which)[Guess.ROOM] for which in ("useful", "wasted")}
            assert found.begun[Guess.ROOM] - sum(before.values()) == 1
            (await cache.lease(next_one)).release()
            after = {which: getattr(found, which)[Guess.ROOM] for which in ("useful", "wasted")}
            assert after == before | {outcome: before[outcome] + 1}

    run(story())


def test_a_foreseen_expert_is_woken_if_there_is_room_or_an_idle_one_may_leave_and_the_leased_one_stays():
    async def story():
        async with running("abc", device=20, costs={"wake": 0.4, "sleep": 0.05}) as (cache, _):
            for name in "cba":
                (await cache.lease(name)).release()
            with await cache.lease("a"):
                await settle()
                assert [status(cache, name).residency for name in "abc"] == ["device", "device", "host"]
                with cache.foreseen("c", 0.9):
                    await settle()
                    assert [status(cache, name).residency for name in "abc"] == ["device", "host", "device"]

    run(story())
