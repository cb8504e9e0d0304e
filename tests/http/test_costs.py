"""What an answer cost, as headers, metrics and the page tell it."""

import json

import pytest

from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.routing.small_artifact import OVERALL, SIZES, TEXTS, held_out, small_artifact

BEST = max(OVERALL, key=OVERALL.__getitem__)


@pytest.fixture
def server(tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    with running_server({name: simulated(name) for name in SIZES}, router=Router.load(tmp_path / "router")) as running:
        yield running


def test_costs_are_told_with_each_answer_and_summed(server):
    said = [server.chat(messages=[{"role": "user", "content": text}])[1] for text in TEXTS.values()]
    costs = [SIZES[headers["x-coe-expert"]] for headers in said]
    assert [float(headers["x-coe-cost"]) for headers in said] == costs
    assert [float(headers["x-coe-saved"]) for headers in said] == [SIZES[BEST] - cost for cost in costs]
    lines = server.ask("GET", "/metrics")[2].decode().splitlines()
    assert f'coe_cost_total{{unit="active_params_b"}} {sum(costs)}' in lines
    assert f'coe_best_single_cost_total{{unit="active_params_b"}} {SIZES[BEST] * len(costs)}' in lines
    overview = json.loads(server.ask("GET", "/admin/overview")[2])
    assert overview["costs"] == [
        {"best_single": BEST, "unit": "active_params_b", "spent": sum(costs), "instead": SIZES[BEST] * len(costs)}
    ]


def test_an_expert_that_is_asked_for_by_name_saves_nothing(server):
    _, headers, _ = server.chat(model="coder")
    assert not {"x-coe-cost", "x-coe-saved"} & headers.keys()
    assert json.loads(server.ask("GET", "/admin/overview")[2])["costs"] == []
