"""Who is likely to be asked for next: habits, demand in general, and doubt."""

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
