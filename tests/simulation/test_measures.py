"""The figures of a run, beside counting second by second."""

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.tiers import Tier
from coe_server.simulation.comparison import blocked_seconds, covered_seconds, measure, serving_share
from coe_server.simulation.simulator import Answer, Run, TimedMove

answers = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 9), st.integers(1, 9)).map(
        lambda t: Answer("a", t[0], t[0] + t[1], t[0] + t[1] + t[2])
    ),
    max_size=8,
)


def run_of(some, **more):
    usual = {"moves": (), "switches": 0, "refused": 0, "wait_bound_seconds": 9, "work_seconds": 1}
    return Run(tuple(some), **(usual | more))


@given(answers)
def test_blocked_is_what_counting_every_second_gives(some):
    def blocked(second):
        unfinished = any(answer.arrived <= second < answer.finished for answer in some)
        return unfinished and not any(answer.granted <= second < answer.finished for answer in some)

    assert blocked_seconds(run_of(some)) == sum(blocked(second) for second in range(60))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8))
def test_the_length_of_a_union_is_what_counting_gives(pairs):
    intervals = [(min(pair), max(pair)) for pair in pairs]
    assert covered_seconds(intervals) == sum(any(a <= s < b for a, b in intervals) for s in range(40))


def test_waits_bytes_and_shares():
    moves = (TimedMove("a", Tier.HOST, Tier.DEVICE, 0, 2, 7), TimedMove("a", Tier.DEVICE, Tier.HOST, 9, 10, 7))
    m = measure(run_of([Answer("a", 0, n, n + 1) for n in range(20)], moves=moves, work_seconds=20))
    assert (m.wait_mean, m.wait_p95, m.wait_max, m.makespan_seconds) == (9.5, 18, 19, 20)
    assert m.bytes_moved == 7
    assert not m.bound_kept
    assert m.serving_share == 1
    assert serving_share(30, 10) == 0.75
