"""The wait bound: stated with all its parts, and kept with unequal moves and short turns."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coe_server.cache.policy import OURS, Limits
from coe_server.cache.tiers import Bytes, Tier
from coe_server.cache.wait_bound import Sharer, slowest_switch_seconds, turn_seconds, wait_bound_seconds
from coe_server.engines.engine import Footprint
from coe_server.simulation.comparison import measure
from coe_server.simulation.simulator import Scenario, SimulatedExpert, Timing, simulate
from tests.cache.machines import trace_of
from tests.examples import examples

LIMITS = Limits(max_wait_seconds=30, queue_limit=64, max_concurrency=16, max_generation_seconds=120)


@pytest.mark.parametrize(("sharing", "seconds"), [(3, 30 + 4 * (480 + 20)), (1, 30 + 480 + 20), (0, 30 + 480)])
def test_the_bound_is_the_wait_and_a_turn_and_a_switch_for_everyone_ahead_and_the_one_under_way(sharing, seconds):
    assert turn_seconds(LIMITS) == 480
    assert wait_bound_seconds(LIMITS, sharing, switch_seconds=20) == seconds


@pytest.mark.parametrize(
    ("sizes", "host_left", "seconds"),
    [
        ((10, 10, 10), 0, 10 + 3),  # one leaves for one
        ((10, 10, 10), -1, 10 + 3 + 2),  # and another one stops, for there is no host memory for all
        ((30, 10, 10), 0, 10 + 3 + 2),  # the large one may need both others to leave
        ((31, 10, 10, 10, 10), 0, 10 + 3 + 2 + 1 + 1),
        ((10,), 0, 10 + 3),  # it may be on its way down itself
        ((), 0, 0),
    ],
)
def test_a_switch_is_the_slowest_way_up_after_the_slowest_ways_down_of_as_many_as_may_have_to_leave(
    sizes, host_left, seconds
):
    ways = zip(sizes, (10, 10, 10, 10, 10), (3, 2, 1, 1, 1), strict=False)
    sharers = [Sharer(Footprint(size, 0, 0, size), up, down) for size, up, down in ways]
    assert slowest_switch_seconds(sharers, host_left) == seconds


def one_after_the_other(timings, device, host, sleeps, limits):
    experts = tuple(
        SimulatedExpert(name, Footprint(size, 0, 1, size if sleeps else 0), timing, preload=Tier.DISK)
        for name, (size, timing) in timings.items()
    )
    return Scenario(experts, Bytes(device, host), limits)


def seconds(start, wake, sleep, stop):
    return Timing(start, wake, sleep, stop, ttft_seconds=0, tokens_per_second=1)


def test_a_request_that_comes_when_a_turn_has_begun_waits_for_the_experts_next_turn():
    limits = Limits(max_wait_seconds=30, queue_limit=4, max_concurrency=4, max_generation_seconds=10)
    timings = dict.fromkeys("ab", (10, seconds(start=40, wake=1, sleep=1, stop=2)))
    machine = one_after_the_other(timings, 10, 10, sleeps=False, limits=limits)
    late = (0.02, "a", 10)
    run = simulate(machine, trace_of((0, "a", 10), *[(0.01, "b", 10)] * 4, late), OURS)
    assert measure(run).wait_max == pytest.approx(144 - 0.02)  # two starts of a, one of b, two answers, two stops
    assert run.wait_bound_seconds == 30 + 3 * (10 + 42)


FAST, SLOW = 0.1, 10.0
moves = st.builds(seconds, *[st.sampled_from([FAST, 1.0, SLOW])] * 4)
machines = st.builds(
    one_after_the_other,
    st.lists(st.tuples(st.sampled_from([3, 5, 10]), moves), min_size=2, max_size=4).map(
        lambda found: dict(zip("abcd", found, strict=False))
    ),
    st.integers(10, 20),
    st.integers(11, 40),
    st.booleans(),
    st.builds(
        Limits,
        max_wait_seconds=st.just(0.5),
        queue_limit=st.just(2),
        max_concurrency=st.just(2),
        max_generation_seconds=st.just(FAST),
        prefetch=st.booleans(),
    ),
)
slow_way_down = one_after_the_other(
    {"a": (10, seconds(FAST, FAST, SLOW, 1)), "b": (3, seconds(SLOW, SLOW, FAST, FAST))},
    *(10, 15),
    sleeps=True,
    limits=Limits(max_wait_seconds=0.5, queue_limit=1, max_concurrency=1, max_generation_seconds=FAST),
)
traffic = st.lists(st.tuples(st.integers(0, 80).map(lambda n: n / 2), st.sampled_from("abcd")), max_size=30)


@given(machines, traffic)
@example(slow_way_down, [(0.0, "a"), (0.0, "b"), (0.5, "a"), (22.0, "a"), (22.0, "b")])
@examples(60)
def test_where_moves_are_uneven_and_turns_short_no_request_waits_longer_than_the_bound(machine, traffic):
    names = {expert.name for expert in machine.experts}
    requests = sorted((at, name, 1) for at, name in traffic if name in names)
    assert measure(simulate(machine, trace_of(*requests), OURS)).bound_kept
