"""Moves before anybody asks: each saves the next request something, none concerns who must stay, and they end."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.planner import Holding, Standing
from coe_server.cache.prefetch import Prospect, prefetch
from coe_server.cache.tiers import Bytes, Tier, bytes_in
from coe_server.engines.engine import Footprint


def prospect(name, tier, chance, up=0.4, down=0.3, **more):
    return Prospect(Holding(name, tier, Footprint(10, host_image=10), **more), chance, up, down)


def free(prospects, device=20, host=100):
    return Bytes(device, host) - Standing.of(one.holding for one in prospects).used


def moves(prospects, **room):
    way = prefetch(prospects, free(prospects, **room))
    return [] if way is None else [(move.expert, move.target) for move in way.moves]


def test_the_unlikely_makes_room_so_that_the_next_one_need_not_wait_for_its_sleep():
    world = [prospect(name, Tier.HOST, 0.24) for name in "abc"]
    world += [prospect("d", Tier.DEVICE, 0.08), prospect("e", Tier.DEVICE, 0.2)]
    assert moves(world) == [("d", Tier.HOST)]
    assert moves([replace(one, holding=replace(one.holding, pin=Tier.DEVICE)) for one in world]) == []


def test_the_likely_comes_in_the_place_of_the_unlikely():
    world = [prospect("a", Tier.HOST, 0.9), prospect("b", Tier.DEVICE, 0.05), prospect("c", Tier.DEVICE, 0.05)]
    assert moves(world) in ([("b", Tier.HOST), ("a", Tier.DEVICE)], [("c", Tier.HOST), ("a", Tier.DEVICE)])
    used = [world[0], *(replace(one, holding=replace(one.holding, busy=True)) for one in world[1:])]
    assert moves(used) == []


def test_nobody_is_stopped_to_spare_a_sleep_when_coming_back_is_a_cold_start():
    stuck = Prospect(Holding("a", Tier.DEVICE, Footprint(10)), 0.1, up_seconds=40, down_seconds=1)
    assert moves([stuck, prospect("b", Tier.HOST, 0.9, up=0.4)], device=10) == []


@st.composite
def worlds(draw):
    names = "abcde"[: draw(st.integers(1, 5))]
    weights = [draw(st.integers(1, 20)) for _ in names]
    tiers = [draw(st.sampled_from([Tier.DEVICE, Tier.HOST])) for _ in names]
    world = [
        prospect(
            name,
            tier,
            weight / sum(weights),
            up=draw(st.sampled_from([0.2, 0.4, 2.0])),
            down=draw(st.sampled_from([0.1, 0.3, 3.0])),
            busy=tier is Tier.DEVICE and draw(st.booleans()),
            pin=draw(st.sampled_from([Tier.DEVICE, Tier.DISK])) if tier is Tier.DEVICE else Tier.DISK,
        )
        for name, weight, tier in zip(names, weights, tiers, strict=True)
    ]
    return world, max(10, 10 * draw(st.integers(0, 3)) + Standing.of(one.holding for one in world).used.device)


@given(worlds())
def test_guessing_comes_to_an_end_fits_and_leaves_the_busy_and_the_pinned_alone(world):
    prospects, device = world
    for _ in range(2 ** len(prospects)):
        way = prefetch(prospects, free(prospects, device=device))
        if way is None:
            return
        named = {one.holding.name: one for one in prospects}
        for move in way.moves:
            holding = named[move.expert].holding
            assert not holding.busy
            assert move.target.depth <= holding.pin.depth
            assert move.source is holding.tier
            named[move.expert] = replace(named[move.expert], holding=replace(holding, tier=move.target))
        prospects = list(named.values())
        assert sum(bytes_in(one.holding.footprint, one.holding.tier).device for one in prospects) <= device
    raise AssertionError("it went on guessing for ever")
