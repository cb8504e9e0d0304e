"""Conversations over HTTP: turn after turn to the same expert, until the topic really changes."""

import json
import re

import pytest

from coe_server.errors import RequestError
from coe_server.http.previous_responses import MadeResponses, ResponseId
from coe_server.routing import artifact as artifacts
from coe_server.routing.decision import RouteOptions
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


def respond(server, headers=None, **fields):
    status, told, raw = server.ask("POST", "/v1/responses", json.dumps(fields), headers)
    return status, told, raw


def id_in(raw):
    return re.search(rb'"id": "(resp_\w+)"', raw)[1].decode()


@pytest.mark.parametrize("stream", [False, True])
def test_a_continued_response_goes_to_the_expert_that_made_it_whatever_the_topic(router, stream):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        _, told, raw = respond(server, input=TEXTS["french"], stream=stream)
        assert told["x-coe-expert"] == "linguist"
        _, told, raw = respond(server, input=TEXTS["maths"], stream=stream, previous_response_id=id_in(raw))
        assert (told["x-coe-expert"], told["x-coe-reason"]) == ("linguist", "requested")
        _, told, _ = respond(server, input="and", previous_response_id=id_in(raw), model="linguist")
        assert told["x-coe-expert"] == "linguist"
        status, _, refused = respond(server, input="and", previous_response_id=id_in(raw), model="coder")
        assert (status, json.loads(refused)["error"]["param"]) == (400, "previous_response_id")
        assert "was created by expert 'linguist'" in json.loads(refused)["error"]["message"]


def test_a_forgotten_response_needs_its_experts_name(router):
    with running_server({name: simulated(name) for name in SIZES}, router=router) as server:
        status, _, raw = respond(server, input="and", previous_response_id="resp_1")
        assert (status, json.loads(raw)["error"]["param"]) == (400, "previous_response_id")
        assert "set `model` to the expert that created it" in json.loads(raw)["error"]["message"]
        assert respond(server, input="and", previous_response_id="resp_1", model="coder")[0] == 200
        assert respond(server, input="and", previous_response_id=None)[0] == 200


def test_a_response_is_found_however_it_comes_and_never_inside_a_text():
    for cut in range(1, 60):
        found = []
        listen = ResponseId(found.append)
        answer = (
            b'{"note": "\\"id\\": \\"resp_false\\"", "previous_response_id": "resp_0", "id":"resp_true"} "id": "resp_2"'
        )
        for start in range(0, len(answer), cut):
            listen(answer[start : start + cut])
        assert found == ["resp_true"]


def test_responses_are_forgotten_in_the_order_they_came_and_belong_to_a_key():
    made = MadeResponses(most=2)
    for number in range(3):
        made.remember(f"resp_{number}", "coder", "ann")
    assert made.continued("resp_2", RouteOptions(), "ann").expert == "coder"
    for previous, owner in (("resp_0", "ann"), ("resp_2", "bob"), ("resp_2", None)):
        with pytest.raises(RequestError, match="unknown previous_response_id"):
            made.continued(previous, RouteOptions(), owner)


def test_anothers_response_is_unknown_even_with_its_experts_name():
    made = MadeResponses(most=2)
    made.remember("resp_1", "coder", "ann")
    named = RouteOptions(expert="coder")
    assert made.continued("resp_1", named, "ann") == named
    for owner in ("bob", None):
        with pytest.raises(RequestError, match=r"unknown previous_response_id 'resp_1'"):
            made.continued("resp_1", named, owner)
        with pytest.raises(RequestError, match=r"unknown previous_response_id 'resp_9'"):
            made.continued("resp_9", RouteOptions(), owner)
    for number in range(5):  # no other key can have it forgotten
        made.remember(f"resp_{number}0", "coder", "bob")
    with pytest.raises(RequestError):
        made.continued("resp_1", named, "bob")
    assert made.continued("resp_9", named, "bob") == named  # the expert says whether it knows it
    made.remember("resp_1", "writer", "bob")  # a server that gives one id twice takes nothing from the first
    assert made.continued("resp_1", RouteOptions(), "ann").expert == "coder"
    assert made.continued("resp_1", RouteOptions(), "bob").expert == "writer"
