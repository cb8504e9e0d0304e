"""The table of several nodes: its figures, and what it says where a goal is missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.switching_nodes import COLUMNS, NodeMachine, Played, all_ways, played, section, stage, verdicts
from coe_server.simulation.nodes import RULES, simulate_nodes

SMALL = NodeMachine(5, 2, 5, "small", requests=20, seeds=2)


def test_all_ways_are_the_same_on_one_node() -> None:
    found = all_ways(SMALL, 1, "zipf", 0)
    assert len(found) == len(RULES)
    assert len({way.whole.wait_mean for way in found.values()}) == 1


def test_a_trace_on_more_nodes_has_the_same_requests_sooner() -> None:
    (_, one), (nodes, two) = stage(SMALL, 1, "zipf", 0), stage(SMALL, 2, "zipf", 0)
    assert [request.expert for request in one.requests] == [request.expert for request in two.requests]
    assert two.requests[-1].arrival_seconds == pytest.approx(one.requests[-1].arrival_seconds / 2)
    assert list(nodes) == ["node-1", "node-2"]


def test_blocked_seconds_of_nodes_add_up() -> None:
    """Whatever is blocked as a whole is blocked on some node."""
    run = simulate_nodes(*stage(SMALL, 2, "interleaved", 0), RULES["round-robin"])
    found = played(run)
    assert found.share_of_nodes <= found.whole.serving_share
    together = played(replace(run, answers=tuple(replace(answer, node="one") for answer in run.answers)))
    assert together.share_of_nodes == pytest.approx(together.whole.serving_share)


def test_each_row_has_a_cell_for_each_column() -> None:
    rows = [line for line in section(SMALL, 2, profiles=("zipf", "dominant")) if line.startswith("|")]
    assert len(rows) == 2 + 2
    assert {row.count("|") for row in rows} == {len(COLUMNS) + 1}


def test_a_missed_goal_is_told() -> None:
    ours = all_ways(SMALL, 2, "zipf", 0)
    worse = Played(replace(ours["coe"].whole, serving_share=0.5, wait_mean=1000.0, wait_max=1e9, refused=3), 0.5)
    told = list(verdicts(replace(SMALL, experts=150), 4, "zipf", [{**ours, "coe": worse}]))
    assert "breaks its wait bound" in told
    assert "3 refused" in told
    assert any("hashed serves" in one for one in told)
    assert any("of that of round-robin" in one for one in told)
    assert list(verdicts(SMALL, 4, "zipf", [dict.fromkeys(ours, ours["coe"])])) == []
