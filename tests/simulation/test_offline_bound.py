"""The offline bound: the search against cases by hand and all policies, the proven bound against the search."""

from dataclasses import replace

import pytest
from hypothesis import given

from coe_server.cache.policy import LRU, OURS, POLICIES
from coe_server.cache.tiers import Bytes, Tier
from coe_server.simulation.comparison import compare, measure, offline_bound
from coe_server.simulation.offline_bound import lower_bound
from coe_server.simulation.simulator import simulate
from tests.cache.machines import machine, machines, played, trace_of
from tests.examples import examples


def optimum(scenario, trace):
    run = simulate(scenario, trace, OURS)
    bound = offline_bound(scenario, trace, run.first_tiers, {"coe": measure(run)})
    assert bound.exact
    return bound.blocked_seconds


def proven(scenario, trace):
    return offline_bound(scenario, trace, simulate(scenario, trace, OURS).first_tiers, {}).blocked_seconds


def test_of_two_that_take_turns_each_comes_once():
    trace = trace_of((0, "a", 1), (0, "b", 1), (0, "a", 1), (0, "b", 1))
    assert optimum(machine(), trace) == pytest.approx(2 + 1 + 2)  # a wakes; a sleeps, b wakes
    assert proven(machine(), trace) == pytest.approx(2 + 2)  # without the sleep


def test_answers_one_after_the_other_hide_a_start():
    trace = trace_of((0, "a", 3), (0, "a", 4), (0, "b", 1))
    cold = machine(on_device=2, preload=Tier.DISK)
    assert optimum(cold, trace) == pytest.approx(8 + 1)  # a starts; 7 of b's 8 seconds are filled
    assert proven(cold, trace) == pytest.approx(8 + 1)


def test_a_policy_that_knows_the_trace_loads_experts_before_their_requests():
    trace = trace_of((0, "a", 1), (20, "b", 1))
    assert optimum(machine(), trace) == pytest.approx(2)
    assert measure(simulate(machine(), trace, OURS)).blocked_seconds == pytest.approx(2 + 3)


def test_a_wait_limit_can_cost_seconds():
    scenario, trace = machine(), trace_of((18, "a", 6), (19, "a", 8), (19, "b", 2))
    run = simulate(scenario, trace, OURS)
    reached = measure(run)
    far = {"coe": replace(reached, blocked_seconds=99.0, wait_bound_seconds=1000.0)}
    near = {"coe": replace(reached, blocked_seconds=99.0, wait_bound_seconds=6.0, wait_max=0.0)}
    assert offline_bound(scenario, trace, run.first_tiers, far).blocked_seconds == pytest.approx(3)
    assert offline_bound(scenario, trace, run.first_tiers, near).blocked_seconds == pytest.approx(4)


@given(played(longest=5, scenarios=machines(most=3)))
@examples(80)
def test_the_proven_bound_is_at_most_the_optimum_and_that_at_most_every_policy(stage):
    scenario, trace = stage
    found = compare(scenario, trace, POLICIES.values())
    assert found.bound.exact
    assert proven(scenario, trace) <= found.bound.blocked_seconds + 1e-6
    for m in found.policies.values():
        if m.bound_kept:
            assert found.bound.blocked_seconds <= m.blocked_seconds + 1e-6


@given(played(longest=40))
@examples(60)
def test_the_proven_bound_is_at_most_what_any_policy_reaches(stage):
    scenario, trace = stage
    for policy in (OURS, LRU):
        assert proven(scenario, trace) <= measure(simulate(scenario, trace, policy)).blocked_seconds + 1e-6


@given(played(longest=4, scenarios=machines(most=3)))
@examples(40)
def test_more_memory_never_raises_the_optimum(stage):
    scenario, trace = stage
    roomier = replace(scenario, capacity=scenario.capacity + Bytes(10, 10))
    assert optimum(roomier, trace) <= optimum(scenario, trace) + 1e-6


@given(played(longest=20))
@examples(60)
def test_slower_moves_never_lower_the_proven_bound(stage):
    scenario, trace = stage
    slower = tuple(
        replace(expert, timing=replace(expert.timing, start_seconds=11, wake_seconds=3)) for expert in scenario.experts
    )
    assert proven(scenario, trace) <= proven(replace(scenario, experts=slower), trace) + 1e-6


def test_without_requests_nothing_is_blocked():
    assert lower_bound((), {}, 10) == 0


def test_switches_are_at_least_the_experts_that_do_not_fit_together():
    trace = trace_of(*[(n, name, 1) for n, name in enumerate("abcab" * 3)])
    found = compare(machine(3, on_device=2), trace, POLICIES.values())
    assert found.bound.switches == 1
    assert not found.bound.exact
    assert all(m.switches >= 1 for m in found.policies.values())
