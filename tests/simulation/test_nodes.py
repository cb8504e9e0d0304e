"""Several nodes behind one front under a virtual clock."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.policy import OURS
from coe_server.cache.tiers import Tier
from coe_server.errors import DatasetError
from coe_server.simulation.comparison import compare_nodes, measure
from coe_server.simulation.nodes import RULES, hashed, home_of, node_names, simulate_nodes, with_own_preloads
from coe_server.simulation.simulator import simulate
from coe_server.simulation.traces import Request, Trace
from tests.cache.machines import machine, played, trace_of
from tests.examples import examples


def alike(nodes, **settings):
    """So many nodes, each the small machine of the cache's tests."""
    return dict.fromkeys(node_names(nodes), machine(**settings))


def nodes_of(run):
    return Counter(answer.node for answer in run.answers)


@given(played(longest=20))
@examples(30)
def test_one_node_behind_a_front_decides_as_without_one(stage):
    scenario, trace = stage
    alone, behind = simulate(scenario, trace, OURS), simulate_nodes({"only": scenario}, trace)
    assert behind.answers == tuple(replace(answer, node="only") for answer in alone.answers)
    assert (behind.moves, behind.switches) == (alone.moves, alone.switches)


@given(played(longest=20), st.integers(2, 4))
@examples(20)
def test_under_every_rule_each_request_is_answered_in_full_within_the_bound_of_its_node(stage, number):
    scenario, trace = stage
    nodes = dict.fromkeys(node_names(number), scenario)
    for rule in RULES.values():
        run = simulate_nodes(nodes, trace, rule)
        assert (len(run.answers), run.refused) == (len(trace.requests), 0)
        assert sum(answer.finished - answer.granted for answer in run.answers) == pytest.approx(run.work_seconds)
        assert all(answer.node in nodes and answer.waited >= 0 for answer in run.answers)
        assert measure(run).bound_kept
        assert run == simulate_nodes(nodes, trace, rule)


def test_an_expert_stays_on_one_node_while_it_has_room_there():
    trace = trace_of(*[(at, "a", 3) for at in range(10)])
    assert len(nodes_of(simulate_nodes(alike(3), trace))) == 1
    assert len(nodes_of(simulate_nodes(alike(3), trace, RULES["round-robin"]))) == 3


def test_an_expert_comes_up_elsewhere_once_its_queue_costs_more():
    """An answer takes 20 s and a node gives one at a time; a wake takes 2 s."""
    trace = trace_of(*[(at, "a", 20) for at in range(3)])
    run = simulate_nodes(alike(3, max_concurrency=1), trace)
    assert sorted(nodes_of(run).values()) == [1, 1, 1]
    assert max(answer.waited for answer in run.answers) == 2


def test_requests_of_one_moment_are_spread_though_the_snapshots_do_not_show_them():
    run = simulate_nodes(alike(2, max_concurrency=1, preload=Tier.DEVICE), trace_of((1, "a", 9), (1, "a", 9)))
    assert sorted(nodes_of(run).values()) == [1, 1]


def test_a_request_that_one_node_refuses_is_tried_on_the_next():
    settings = {"queue_limit": 1, "max_concurrency": 1, "max_wait_seconds": 1000}
    trace = trace_of(*[(0, "a", 5)] * 3)
    alone = simulate_nodes(alike(1, **settings), trace)
    both = simulate_nodes(alike(2, **settings), trace)
    assert (alone.refused, both.refused) == (2, 1)
    assert sorted(nodes_of(both).values()) == [1, 1]


def test_hashed_sends_an_expert_to_its_one_node():
    nodes = alike(3, number=4)
    trace = trace_of(*[(at, "abcd"[at % 4], 1) for at in range(12)])
    run = simulate_nodes(nodes, trace, hashed)
    assert {(answer.expert, answer.node) for answer in run.answers} == {
        (name, home_of(name, list(nodes))) for name in "abcd"
    }


def test_least_queue_takes_the_node_with_the_fewest_open_requests():
    run = simulate_nodes(alike(2), trace_of((0, "a", 50), (10, "b", 1), (20, "b", 1)), RULES["least-queue"])
    first, *others = sorted(run.answers, key=lambda answer: answer.arrived)
    assert {answer.node for answer in others} == set(node_names(2)) - {first.node}


def test_within_the_tolerance_an_expert_that_another_node_has_loaded_answers():
    near, far = {"a": 0.7, "b": 0.75}, {"a": 0.2, "b": 0.9}
    requests = (Request(0, 4, "a"), Request(3, 1, scores=near), Request(8, 1, scores=far))
    run = simulate_nodes(alike(2), Trace("t", requests), tolerance=0.1)
    assert [answer.expert for answer in sorted(run.answers, key=lambda answer: answer.arrived)] == ["a", "a", "b"]
    assert measure(run).resident_choices == 1


def test_each_node_preloads_its_own_experts_first():
    nodes = node_names(3)
    there = with_own_preloads(machine(number=6, in_host=3), nodes)
    for node, scenario in there.items():
        preloaded = {one.name for one in scenario.experts if one.preload is Tier.HOST}
        own = {one.name for one in scenario.experts if home_of(one.name, nodes) == node}
        assert len(preloaded) == 3
        assert own <= preloaded or preloaded <= own


def test_an_expert_that_no_node_has_is_a_mistake_in_the_trace():
    with pytest.raises(DatasetError, match="there is no expert 'z'; known: a, b"):
        simulate_nodes(alike(2), trace_of((0, "z", 1)))


def test_a_comparison_of_rules_claims_no_bound():
    found = compare_nodes(alike(2), trace_of((0, "a", 1), (1, "b", 1)), RULES)
    assert list(found.policies) == list(RULES)
    assert (found.bound.serving_share, found.bound.exact) == (1.0, False)
