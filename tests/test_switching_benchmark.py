"""The benchmark reaches into the cache: what it takes the place of must still be there."""

from __future__ import annotations

import pytest

from benchmarks.switching import Machine, Watch, one_by_one, stage
from coe_server.cache.policy import OURS
from coe_server.simulation.simulator import simulate

SMALL = Machine(experts=5, on_device=2, in_host=5, requests=20)


def test_one_by_one_answers_one_request_at_a_time() -> None:
    scenario, trace = stage(SMALL, "interleaved")
    alone, ours = one_by_one(scenario, trace), simulate(scenario, trace, OURS)
    assert len(ours.answers) == len(trace.requests)
    together = sum(answer.finished - answer.granted for answer in ours.answers)
    assert alone.refused == 0
    assert alone.makespan_seconds >= together


def test_each_request_has_its_share_of_deciding() -> None:
    scenario, trace = stage(SMALL, "zipf")
    watch = Watch([request.arrival_seconds for request in trace.requests])
    watch.run(lambda: simulate(scenario, trace, OURS))
    assert sum(watch.passes) == pytest.approx(sum(watch.one_pass))
    assert all(0 < deciding <= whole for deciding, whole in zip(watch.deciding, watch.passes, strict=True) if whole)
    assert len(watch.outlooks) == len(trace.requests)
