"""Conversations over HTTP: turn after turn to the same expert, until the topic really changes."""

import json

import pytest

from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import Breaking, DiesAtOnce, simulated
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact


@pytest.fixture
def router(tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    return Router.load(tmp_path / "router")


def say(server, *texts, path="/v1/chat/completions", **fields):
    messages = []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "well"}]
    name = "input" if path == "/v1/responses" else "messages"
    status, headers, raw = server.ask("POST", path, json.dumps({name: messages[:-1], "max_tokens": 50, **fields}))
    assert status == 200, raw
    return headers["x-coe-expert"], headers["x-coe-reason"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_conversation_stays_until_its_topic_changes(router, path):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        french, maths = TEXTS["french"], TEXTS["maths"]
        assert say(server, french, path=path) == ("linguist", "mapped")
        assert say(server, french, "thanks", path=path) == ("linguist", "sticky")
        assert say(server, french, "thanks", maths, path=path) == ("big", "mapped")
        assert say(server, french, "thanks", maths, "go on", path=path) == ("big", "sticky")
        assert say(server, "good day " + french, "thanks", path=path)[1] != "sticky"  # another conversation


def test_a_named_session_needs_no_history(router):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        mine, yours = {"coe": {"session": "mine"}}, {"coe": {"session": "yours"}}
        assert say(server, TEXTS["french"], **mine) == ("linguist", "mapped")
        assert say(server, "thanks", **mine) == ("linguist", "sticky")
        assert say(server, "thanks", **yours)[1] != "sticky"


def test_a_conversation_returns_to_its_expert_after_a_fallback(router):
    engines = {name: Breaking(name, []) for name in SIZES}
    with running_server(engines, router=router) as server:
        french = TEXTS["french"]
        assert say(server, french) == ("linguist", "mapped")
        engines["linguist"].deaths.append(DiesAtOnce)
        assert say(server, french, "thanks") == ("big", "fallback")
        assert say(server, french, "thanks", "go on") == ("linguist", "sticky")
