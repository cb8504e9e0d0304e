"""The wait bound on several cards: experts whose seats share no card do not wait for one another's turns."""

import pytest

from coe_server.cache.policy import Limits
from coe_server.cache.wait_bound import Group, Sharer, groups_of
from coe_server.engines.engine import Footprint

LIMITS = Limits(max_wait_seconds=30, queue_limit=64, max_concurrency=16, max_generation_seconds=120)
SMALL = Footprint(device_awake=10, host_image=10)
TURN, UP, DOWN = 480, 40.0, 2.0


def sharer(name, *seats):
    return Sharer(SMALL, UP, DOWN, len(seats[0]), name, seats)


def members(groups):
    return sorted(sorted(group.experts) for group in groups)


def test_experts_whose_seats_share_a_card_directly_or_over_others_are_one_group():
    left, right, bridge = sharer("left", (0,)), sharer("right", (1,)), sharer("bridge", (0, 1))
    assert members(groups_of([left, right], 0)) == [["left"], ["right"]]
    assert members(groups_of([left, right, bridge], 0)) == [["bridge", "left", "right"]]
    assert members(groups_of([left, sharer("other", (2, 3)), sharer("any", (1,), (2,))], 0)) == [
        ["any", "other"],
        ["left"],
    ]
    assert groups_of([], 0) == ()


def test_where_host_memory_does_not_hold_every_process_all_wait_for_one_another():
    assert members(groups_of([sharer("left", (0,)), sharer("right", (1,))], -1)) == [["left", "right"]]


def test_on_one_card_nothing_starts_elsewhere_and_the_bound_is_that_of_one_card():
    (group,) = groups_of([sharer(name, (0,)) for name in "abc"], 0)
    assert (group.start_elsewhere_seconds, group.starts_ahead_seconds) == (0, 0)
    assert group.bound_seconds(LIMITS) == 30 + 4 * (TURN + UP + DOWN)
    assert Group().bound_seconds(LIMITS) == 30 + TURN


def test_experts_as_wide_as_the_machine_leave_no_cards_for_a_start_elsewhere():
    (group,) = groups_of([sharer(name, (0, 1)) for name in "ab"], 0)
    assert group.start_elsewhere_seconds == 0


@pytest.mark.parametrize(("number", "ahead"), [(1, 1), (3, 4)])
def test_a_start_on_other_cards_may_be_before_each_turn_and_each_other_expert_starts_once(number, ahead):
    here = [sharer(f"here {at}", (0,)) for at in range(number)]
    there = [sharer(f"there {at}", (1,)) for at in range(2)]
    group = next(one for one in groups_of([*here, *there], 0) if "here 0" in one.experts)
    assert group.start_elsewhere_seconds == UP
    assert group.starts_ahead_seconds == 2 * UP
    assert group.bound_seconds(LIMITS) == 30 + ahead * (TURN + UP + DOWN + UP) + 2 * UP
