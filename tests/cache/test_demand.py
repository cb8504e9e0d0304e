"""How much each expert was asked for lately, against the same sum by hand; and which one follows which."""

import random

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.demand import HALF_LIFE_SECONDS, Demand

PAUSES = st.sampled_from([0.0, 1.0, HALF_LIFE_SECONDS, 100.5 * HALF_LIFE_SECONDS])


def told(names, experts="abcd"):
    """A demand that was told of one request a second, and the moment of the last one."""
    demand = Demand(experts)
    for second, name in enumerate(names, start=1):
        demand.note(name, float(second))
    return demand, float(len(names))


def chances(names, experts="abcd"):
    demand, now = told(names, experts)
    return demand.chances(now)


@given(st.lists(st.tuples(PAUSES, st.sampled_from("ab")), max_size=20), PAUSES)
def test_every_request_counts_half_as_much_every_half_life(requests, silence):
    demand, now, came = Demand("abc"), 0.0, {name: [] for name in "abc"}
    for pause, name in requests:
        now += pause
        demand.note(name, now)
        came[name].append(now)
    now += silence
    lately = demand.lately(now)
    for name, moments in came.items():
        by_hand = sum(0.5 ** ((now - moment) / HALF_LIFE_SECONDS) for moment in moments)
        assert abs(lately[name] - by_hand) < 1e-9


def test_an_expert_that_always_follows_is_expected_to_follow():
    assert chances("abc" * 20)["a"] > 0.85  # the last one was c


def test_without_habits_demand_decides_and_no_expert_is_impossible():
    found = chances("abacabad", "abcdef")  # none was asked for twice in a row
    assert found["a"] > found["b"] > found["c"] > found["e"] == found["f"] > 0


def test_an_expert_that_was_always_asked_for_twice_is_expected_again():
    assert chances("aabbccdd" * 5 + "a")["a"] > 0.4


def test_where_others_were_asked_for_twice_an_expert_is_expected_again_after_its_first_request():
    assert chances("aabbc", "abcde")["c"] > 0.5
    assert chances("abac" * 20 + "d", "abcde")["d"] < 0.05


def test_a_foreseen_request_comes_with_its_probability_and_the_usual_ones_share_the_rest():
    demand, now = told("abacabad")
    before = demand.chances(now)
    demand.foresee("c", 0.3)
    demand.foresee("c", 0.3)
    after = demand.chances(now)
    assert abs(sum(after.values()) - sum(before.values())) < 1e-9
    assert all(abs(after[name] - (0.4 * before[name] + (0.6 if name == "c" else 0.0))) < 1e-9 for name in "abcd")
    demand.foresee("c", -0.3)
    demand.foresee("c", -0.3)
    assert demand.chances(now) == before
    demand.foresee("c", 0.3)
    demand.forget("c")
    assert set(demand.chances(now)) == set("abd")


def test_demand_alone_is_not_taken_for_follow_ups():
    found = chances([*random.Random(0).choices("ab", [9, 1], k=2000), "c"], "abc")
    assert found["c"] < 0.25


def test_old_follow_ups_fade():
    assert chances("aabb" * 100 + "abac" * 120 + "d")["d"] < 0.2


def test_demand_alone_is_not_taken_for_a_habit():
    found = chances([*random.Random(0).choices("ab", [9, 1], k=2000), "b"], "ab")
    assert found["b"] < 0.25


def test_old_habits_fade():
    found = chances("ab" * 100 + "ac" * 120 + "a")
    assert found["c"] > 3 * found["b"]


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 30.0])), max_size=150),
    st.floats(0, 1e6),
)
def test_chances_are_probabilities(requests, silence):
    demand, now = Demand("abcd"), 0.0
    for name, pause in requests:
        now += pause
        demand.note(name, now)
    found = demand.chances(now + silence)
    assert set(found) == set("abcd")
    assert all(0 <= chance <= 1 for chance in found.values())
    assert abs(sum(found.values()) - 1) < 1e-9
