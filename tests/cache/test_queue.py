"""A queue is in order of arrival, shifted by priority; no request waits for ever behind urgent ones."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.queue import WEIGHTS, WaitingLine

priorities = st.sampled_from(sorted(WEIGHTS))


@given(st.lists(st.tuples(st.integers(0, 100), priorities), max_size=30))
def test_the_same_priority_keeps_the_order_of_arrival_and_urgency_overtakes_by_at_most_max_wait(joins):
    line = WaitingLine(max_wait_seconds=20)
    for number, (moment, priority) in enumerate(sorted(joins, key=lambda join: join[0])):
        line.join(float(moment), priority, number)
    left = [line.pop() for _ in range(len(line))]
    for before, after in pairwise(left):
        assert before.place <= after.place
    for position, waiter in enumerate(left):
        for overtaken in left[position + 1 :]:
            assert waiter.arrived - overtaken.arrived <= 20
            if waiter.weight <= overtaken.weight:
                assert waiter.arrived <= overtaken.arrived


def test_a_waiter_leaves_once():
    line = WaitingLine(10)
    one, two = line.join(0.0, "normal", None), line.join(0.0, "normal", None)
    assert line.leave(one)
    assert not line.leave(one)
    assert list(line) == [two]
    assert line.arrivals == [0.0]
