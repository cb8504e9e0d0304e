"""Whose turn it is: overdue by deadline, then by waiting worth a switch."""

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.scheduler import Queue, Turn, seconds_until_pressing, turns

queues = st.lists(
    st.builds(
        Queue,
        expert=st.integers(0, 99).map(str),
        arrivals=st.lists(st.integers(0, 400).map(lambda n: n / 4), min_size=1, max_size=5).map(
            lambda times: tuple(sorted(times))
        ),
        switch_seconds=st.integers(0, 160).map(lambda n: n / 4),
    ),
    max_size=5,
    unique_by=lambda queue: queue.expert,
)


def test_collating_waits_until_the_waiting_is_worth_the_switch():
    queue = Queue("b", (0.0, 1.0), switch_seconds=9.0)
    assert turns([queue], now=4.0, max_wait_seconds=60) == (Turn("b", pressing=False),)
    assert seconds_until_pressing([queue], 4.0, 60) == 1.0
    assert turns([queue], now=5.0, max_wait_seconds=60) == (Turn("b", pressing=True),)


def test_the_overdue_come_first_in_order_of_deadline():
    late, later, long = Queue("late", (2.0,), 50), Queue("later", (1.0,), 50), Queue("long", (6.0,) * 90, 1)
    assert [turn.expert for turn in turns([late, long, later], now=12.0, max_wait_seconds=10)] == [
        "later",
        "late",
        "long",
    ]


@given(queues, st.integers(400, 800).map(lambda n: n / 4), st.integers(1, 120))
def test_everyone_overdue_is_pressing_and_ahead_of_all_others(queues, now, max_wait):
    order = turns(queues, now, max_wait)
    assert sorted(turn.expert for turn in order) == sorted(queue.expert for queue in queues)
    by_name = {queue.expert: queue for queue in queues}
    overdue = [now - by_name[turn.expert].arrivals[0] >= max_wait for turn in order]
    assert overdue == sorted(overdue, reverse=True)
    assert [turn.overdue for turn in order] == overdue
    assert all(turn.pressing for turn in order if turn.overdue)


@given(queues, st.integers(400, 800).map(lambda n: n / 4), st.integers(1, 120))
def test_at_the_moment_foretold_and_not_before_another_queue_is_pressing(queues, now, max_wait):
    def pressing(moment):
        return {turn.expert for turn in turns(queues, moment, max_wait) if turn.pressing}

    seconds = seconds_until_pressing(queues, now, max_wait)
    if seconds is None:
        assert pressing(now) == {queue.expert for queue in queues}
    else:
        assert pressing(now + seconds + 1e-6) > pressing(now)
        assert pressing(now + seconds - 1e-6) == pressing(now)
