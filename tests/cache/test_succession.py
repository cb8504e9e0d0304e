"""Who is likely to be asked for next: habits, demand in general, and doubt."""

import random

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.succession import Succession


class Told:
    """A succession that was told of one request a second, up to now."""

    def __init__(self, names):
        self.succession = Succession()
        self.now = 0.0
        self.tell(names)

    def tell(self, names, pause=1.0):
        for name in names:
            self.now += pause
            self.succession.note(name, self.now)

    def chances(self, demand, silence=0.0):
        return self.succession.chances(demand, self.now + silence)

    def seconds_until_doubt(self, silence):
        return self.succession.seconds_until_doubt(self.now + silence)


def test_whoever_always_follows_is_expected_to_follow():
    chances = Told("abc" * 20).chances({"a": 10.0, "b": 10.0, "c": 10.0})
    assert chances["a"] > 0.85  # the last one was c


def test_without_habits_demand_decides_and_nobody_is_impossible():
    chances = Told("").chances({"a": 3.0, "b": 1.0, "c": 0.0})
    assert chances["a"] > chances["b"] > chances["c"] > 0


def test_whoever_has_just_come_is_taken_to_ask_again_where_others_did():
    demand = {"a": 2.0, "b": 2.0, "c": 2.0, "d": 1.0}
    chances = Told("aabbccd").chances(demand)
    assert max(chances, key=lambda name: chances[name]) == "d"
    assert Told("d").chances(demand)["d"] > 0.4  # and at first, while nothing is known
    assert Told("abc" * 20 + "d").chances(demand)["d"] < 0.2  # but not where nobody does


def test_demand_alone_is_not_taken_for_a_habit():
    chances = Told([*random.Random(0).choices("ab", [9, 1], k=2000), "b"]).chances({"a": 9.0, "b": 1.0})
    assert chances["b"] < 0.25


def test_a_follow_up_is_not_expected_for_longer_than_follow_ups_take():
    told, demand = Told(""), {"a": 10.0, "b": 10.0}
    for name in "ab" * 20:
        told.tell(name, pause=30.0)
        told.tell(name * 5, pause=1.0)
    at_once, later, much_later = (told.chances(demand, silence)["b"] for silence in (0.0, 3.0, 20.0))
    assert at_once > 0.7 > later > 0.05 > much_later
    wait = told.seconds_until_doubt(0.2)
    assert 0.5 < wait < 1.5  # about as long as a follow-up takes
    assert told.seconds_until_doubt(20.0) is None  # nothing new to come


def test_where_follow_ups_come_no_sooner_than_others_silence_says_nothing():
    told, demand = Told("aabb" * 10), {"a": 10.0, "b": 10.0}
    assert told.chances(demand, 100.0) == told.chances(demand)
    assert told.seconds_until_doubt(0.0) is None


def test_old_habits_fade():
    changed = Told("ab" * 100 + "ac" * 120 + "a")
    demand = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert changed.chances(demand)["c"] > 3 * changed.chances(demand)["b"]


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 0.7, 30.0])), max_size=40),
    st.lists(st.floats(0, 100), min_size=4, max_size=4),
    st.floats(0, 1e6),
)
def test_chances_are_probabilities(requests, demands, silence):
    told = Told("")
    for name, pause in requests:
        told.tell(name, pause)
    chances = told.chances(dict(zip("abcd", demands, strict=True)), silence)
    assert set(chances) == set("abcd")
    assert all(0 <= chance <= 1 for chance in chances.values())
    assert abs(sum(chances.values()) - 1) < 1e-9
    wait = told.seconds_until_doubt(silence)
    assert wait is None or wait > 0
