"""Who is likely to be asked for next: habits, demand in general, and doubt."""

import random

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.succession import Succession


def told(names):
    succession = Succession()
    for name in names:
        succession.note(name)
    return succession


def test_whoever_always_follows_is_expected_to_follow():
    chances = told("abc" * 20).chances({"a": 10.0, "b": 10.0, "c": 10.0})
    assert chances["a"] > 0.85  # the last one was c


def test_without_habits_demand_decides_and_nobody_is_impossible():
    chances = told("").chances({"a": 3.0, "b": 1.0, "c": 0.0})
    assert chances["a"] > chances["b"] > chances["c"] > 0


def test_whoever_has_just_come_is_taken_to_ask_again_where_others_did():
    demand = {"a": 2.0, "b": 2.0, "c": 2.0, "d": 1.0}
    chances = told("aabbccd").chances(demand)
    assert max(chances, key=lambda name: chances[name]) == "d"
    assert told("d").chances(demand)["d"] > 0.4  # and at first, while nothing is known
    assert told("abc" * 20 + "d").chances(demand)["d"] < 0.2  # but not where nobody does


def test_demand_alone_is_not_taken_for_a_habit():
    rng = random.Random(0)
    chances = told(rng.choices("ab", [9, 1], k=2000) + ["b"]).chances({"a": 9.0, "b": 1.0})
    assert chances["b"] < 0.25


def test_old_habits_fade():
    changed = told("ab" * 100 + "ac" * 120 + "a")
    demand = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert changed.chances(demand)["c"] > 3 * changed.chances(demand)["b"]


@given(st.lists(st.sampled_from("abcd")), st.lists(st.floats(0, 100), min_size=4, max_size=4))
def test_chances_are_probabilities(names, demands):
    chances = told(names).chances(dict(zip("abcd", demands, strict=True)))
    assert set(chances) == set("abcd")
    assert all(0 < chance <= 1 for chance in chances.values())
    assert abs(sum(chances.values()) - 1) < 0.5  # what is left of faded habits may be a little short of all
