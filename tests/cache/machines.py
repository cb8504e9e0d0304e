"""Small machines and random traffic for the simulator's tests."""

from hypothesis import strategies as st

from coe_server.cache.policy import Limits
from coe_server.cache.tiers import Bytes, Tier
from coe_server.engines.engine import Footprint
from coe_server.simulation.simulator import Scenario, SimulatedExpert, Timing
from coe_server.simulation.traces import Request, Trace

SECOND_A_TOKEN = Timing(
    start_seconds=8, wake_seconds=2, sleep_seconds=1, stop_seconds=1, ttft_seconds=0, tokens_per_second=1
)


def machine(number=2, on_device=1, in_host=None, preload=Tier.HOST, timing=SECOND_A_TOKEN, **limits):
    """Experts a, b, c, ... of 10 bytes each."""
    in_host = number if in_host is None else in_host
    experts = tuple(
        SimulatedExpert(name, Footprint(10, host_image=10), timing, preload=preload if place < in_host else Tier.DISK)
        for place, name in enumerate("abcdefgh"[:number])
    )
    return Scenario(experts, Bytes(10 * on_device, 10 * in_host), Limits(**limits))


def trace_of(*requests):
    """Each request as (arrival, expert, tokens)."""
    return Trace("test", tuple(Request(float(at), tokens, expert) for at, expert, tokens in requests))


@st.composite
def machines(draw, most=4):
    number = draw(st.integers(1, most))
    return machine(
        number,
        on_device=draw(st.integers(1, 2)),
        in_host=draw(st.integers(max(1, number // 2), number)),
        preload=draw(st.sampled_from([Tier.HOST, Tier.DISK])),
        max_concurrency=draw(st.sampled_from([1, 16])),
        max_wait_seconds=draw(st.sampled_from([1.0, 30.0])),
    )


@st.composite
def played(draw, longest=12, scenarios=None):
    """A machine and a trace for it."""
    scenario = draw(machines() if scenarios is None else scenarios)
    names = [expert.name for expert in scenario.experts]
    one = st.tuples(st.integers(0, 60).map(lambda n: n / 2), st.sampled_from(names), st.integers(1, 8))
    return scenario, trace_of(*sorted(draw(st.lists(one, min_size=1, max_size=longest))))
