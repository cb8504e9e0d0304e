"""The real cache under a virtual clock, against what a hand can work out."""

from dataclasses import replace

import pytest
from hypothesis import given

from coe_server.cache.costs import Costs
from coe_server.cache.policy import FIFO, LRU, OURS, POLICIES
from coe_server.cache.tiers import Tier
from coe_server.errors import DatasetError
from coe_server.simulation.comparison import measure
from coe_server.simulation.scenario import timing_of
from coe_server.simulation.simulator import simulate
from coe_server.simulation.traces import Request, Trace
from tests.cache.machines import machine, played, trace_of
from tests.examples import examples

KEEP_APART = {"max_wait_seconds": 1000, "prefetch": False}


def test_two_experts_in_the_room_of_one():
    run = simulate(machine(**KEEP_APART), trace_of((0, "a", 3), (1, "b", 4), (1, "a", 2)), OURS)
    # a wakes for 2 s and answers both, b comes once it is idle: a sleeps for 1 s, b wakes for 2 s and answers
    by_arrival = sorted(run.answers, key=lambda answer: (answer.arrived, answer.expert))
    assert [(a.expert, a.granted, a.finished) for a in by_arrival] == [("a", 2, 5), ("a", 2, 4), ("b", 8, 12)]
    m = measure(run)
    assert (m.switches, m.blocked_seconds, m.makespan_seconds, m.wait_max) == (1, 2 + 3, 12, 7)
    assert m.serving_share == 9 / (9 + 5)
    assert m.bytes_moved == 20


def test_in_strict_order_of_arrival_everything_switches():
    trace = trace_of((0, "a", 1), (0.5, "b", 1), (1, "a", 1), (1.5, "b", 1))
    assert simulate(machine(**KEEP_APART), trace, FIFO).switches == 3
    assert simulate(machine(**KEEP_APART), trace, LRU).switches == 1


def test_time_begins_when_everything_is_preloaded():
    cold = simulate(machine(preload=Tier.DISK), trace_of((0, "a", 1)), OURS)
    warm = simulate(machine(), trace_of((0, "a", 1)), OURS)
    ready = simulate(machine(preload=Tier.DEVICE), trace_of((0, "a", 1)), OURS)
    assert [run.answers[0].waited for run in (cold, warm, ready)] == [8, 2, 0]
    assert [run.switches for run in (cold, warm, ready)] == [0, 0, 0]


def test_an_answer_takes_no_longer_than_it_may():
    run = simulate(machine(max_generation_seconds=5), trace_of((0, "a", 60)), OURS)
    assert run.answers[0].finished == 2 + 5
    assert run.work_seconds == 5


def test_what_the_queue_has_no_room_for_is_refused_and_counted():
    run = simulate(machine(queue_limit=2), trace_of(*[(0, "a", 1)] * 5), OURS)
    assert (len(run.answers), run.refused, run.work_seconds) == (2, 3, 5)


def test_within_the_tolerance_a_resident_expert_answers():
    near, far = {"a": 0.7, "b": 0.75}, {"a": 0.2, "b": 0.9}
    requests = (Request(0, 4, "a"), Request(3, 1, scores=near), Request(4, 1, scores=far))
    run = simulate(machine(), Trace("t", requests), OURS, tolerance=0.1)
    assert [answer.expert for answer in sorted(run.answers, key=lambda answer: answer.arrived)] == ["a", "a", "b"]
    m = measure(run)
    assert m.resident_choices == 1
    assert m.score_lost == pytest.approx(0.05)
    assert m.wait_saved_seconds > 0
    assert measure(simulate(machine(), Trace("t", requests), OURS)).resident_choices == 0


def test_a_resident_expert_that_saves_no_waiting_is_not_taken():
    full = (Request(0, 4, "a"),) * 3  # one at a time
    trace = Trace("t", (*full, Request(3, 1, scores={"a": 0.7, "b": 0.75})))
    run = simulate(machine(on_device=2, max_concurrency=1), trace, OURS, tolerance=0.1)
    assert sorted(answer.expert for answer in run.answers) == ["a", "a", "a", "b"]
    assert measure(run).wait_saved_seconds == 0


def test_an_unknown_expert_is_a_mistake_in_the_trace():
    with pytest.raises(DatasetError, match="there is no expert 'z'; known: a, b"):
        simulate(machine(), trace_of((0, "z", 1)), OURS)


@given(played(longest=30))
@examples(60)
def test_under_every_policy_everybody_is_answered_in_full_and_ours_keeps_its_bound(stage):
    scenario, trace = stage
    for policy in POLICIES.values():
        run = simulate(scenario, trace, policy)
        assert len(run.answers) == len(trace.requests)
        assert run.refused == 0
        assert sum(answer.finished - answer.granted for answer in run.answers) == pytest.approx(run.work_seconds)
        assert all(answer.waited >= 0 for answer in run.answers)
        if policy is OURS:
            assert measure(run).bound_kept
        assert run == simulate(scenario, trace, policy)


def test_in_strict_order_of_arrival_two_experts_that_wait_for_each_other_both_come():
    trace = trace_of((0, "a", 4), (1, "b", 4), (1.5, "c", 1), (2, "a", 1), (2.5, "b", 1), (3, "a", 1), (3.5, "c", 1))
    run = simulate(machine(3, on_device=2, in_host=2), trace, FIFO)
    assert [a.granted for a in sorted(run.answers, key=lambda a: a.arrived)] == sorted(a.granted for a in run.answers)


def test_fewer_at_a_time_take_longer():
    scenario, trace = machine(), trace_of(*[(0, "a", 2)] * 4)
    alone = replace(scenario, limits=replace(scenario.limits, max_concurrency=1))
    assert measure(simulate(scenario, trace, OURS)).makespan_seconds == 2 + 2
    assert measure(simulate(alone, trace, OURS)).makespan_seconds == 2 + 8


def test_what_was_not_measured_is_guessed_as_the_server_guesses_it():
    guesses, told = Costs(), timing_of({"start": 7.0})
    assert told.start_seconds == 7.0
    assert told.wake_seconds == guesses.move(Tier.HOST, Tier.DEVICE)
    assert told.stop_seconds == guesses.move(Tier.DEVICE, Tier.DISK)
