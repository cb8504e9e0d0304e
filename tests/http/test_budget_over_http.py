"""What is answered over HTTP counts towards the budget; what is only asked about, or breaks, does not."""

import json

import pytest

from coe_server.routing import artifact as artifacts
from coe_server.routing.budget import factor
from coe_server.routing.conversation import Conversation
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import Breaking, DiesAtOnce
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact


@pytest.fixture
def router(tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    return Router.load(tmp_path / "router", budget_window=10)


def budget_at(server):
    body = {"model": "auto:cheap", "messages": [{"role": "user", "content": TEXTS["code"]}]}
    return json.loads(server.ask("POST", "/v1/route", json.dumps(body))[2])["budget"]


def ask(server):
    return server.chat(model="auto:cheap", messages=[{"role": "user", "content": TEXTS["code"]}])


def test_an_answer_counts_and_a_dry_run_does_not(router):
    with running_server({name: Breaking(name, []) for name in SIZES}, router=router) as server:
        before = budget_at(server)
        own = 0.01 * factor(Conversation.of_prompt(TEXTS["code"]).turns)
        assert before == {"target": 10.0, "mean": None, "multiplier": own}
        status, headers, _ = ask(server)
        assert (status, headers["x-coe-expert"]) == (200, "coder")
        after = budget_at(server)
        assert after["mean"] == SIZES["coder"]
        assert after["multiplier"] < before["multiplier"]


def test_a_request_that_no_expert_answered_cost_nothing(router):
    with running_server({name: Breaking(name, [DiesAtOnce] * 9) for name in SIZES}, router=router) as server:
        assert ask(server)[0] in {502, 503}
        reading = router.price("cheap")
        assert reading.mean is None
        assert reading.multiplier == pytest.approx(0.01)
