"""Feedback and decisions as a client meets them."""

import json

import pytest

from coe_server.engines.simulated import SimulatedEngine
from coe_server.journal.entries import Retention
from coe_server.journal.journal import Journal
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.routing.small_artifact import SIZES, held_out, small_artifact


def engine(name):
    return SimulatedEngine(
        name,
        weights_bytes=1 << 30,
        start_seconds=0,
        wake_seconds=0,
        sleep_seconds=0,
        ttft_seconds=0,
        tokens_per_second=9999,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    journal = Journal(tmp_path_factory.mktemp("state") / "j", Retention(1000, 1e9), keeps_prompts=True)
    folder = tmp_path_factory.mktemp("artifact") / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    router = Router.load(folder)
    with running_server({name: engine(name) for name in SIZES}, router=router, journal=journal) as running:
        yield running
    journal.stop()


def asked(server, text="bonjour merci maison"):
    status, headers, _ = server.chat(model="auto", messages=[{"role": "user", "content": text}])
    assert status == 200
    return headers["x-coe-decision-id"]


def rate(server, **fields):
    status, _, raw = server.ask("POST", "/v1/feedback", json.dumps(fields))
    return status, json.loads(raw)


def test_a_decision_is_rated_by_its_id_and_the_last_word_counts(server):
    name = asked(server)
    for score in (0, 1.0, 0.25):
        assert rate(server, decision_id=name, score=score, comment="so so") == (
            200,
            {"decision_id": name, "score": score},
        )
    status, _, raw = server.ask("GET", f"/v1/decisions/{name}")
    found = json.loads(raw)
    assert status == 200
    assert found["feedback"] == {"score": 0.25, "comment": "so so"}


def test_a_decision_explains_itself_without_the_prompt(server):
    raw = server.ask("GET", f"/v1/decisions/{asked(server, 'bonjour chien secret')}")[2]
    found = json.loads(raw)
    assert (found["category"], found["expert"]) == ("french", "linguist")
    assert found["ranking"][0]["expected_score"] > 0.5
    assert set(found["probabilities"]) == {"code", "french", "maths"}
    assert b"secret" not in raw


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_decision_says_what_its_answer_took(server, is_streamed):
    body = {"messages": [{"role": "user", "content": "bonjour merci"}], "max_tokens": 3, "stream": is_streamed}
    body["stream_options"] = {"include_usage": True}
    _, headers, _ = server.ask("POST", "/v1/chat/completions", json.dumps({"model": "auto", **body}))
    found = json.loads(server.ask("GET", f"/v1/decisions/{headers['x-coe-decision-id']}")[2])
    assert found["tokens"] == {"prompt": 2, "completion": 3}


def test_what_states_no_tokens_has_none_in_the_log(server):
    _, headers, _ = server.ask(
        "POST",
        "/v1/chat/completions",
        json.dumps({"model": "auto", "messages": [{"role": "user", "content": "bonjour"}], "stream": True}),
    )
    found = json.loads(server.ask("GET", f"/v1/decisions/{headers['x-coe-decision-id']}")[2])
    assert (found["expert"], found["tokens"]) == ("linguist", None)


def test_a_deleted_decision_is_unknown_to_everybody(server):
    name = asked(server)
    assert server.ask("DELETE", f"/v1/decisions/{name}")[0] == 204
    for method, path, body in (
        ("GET", f"/v1/decisions/{name}", None),
        ("DELETE", f"/v1/decisions/{name}", None),
        ("POST", "/v1/feedback", json.dumps({"decision_id": name, "score": 1})),
    ):
        status, _, raw = server.ask(method, path, body)
        assert (status, json.loads(raw)["error"]["code"]) == (404, "decision_not_found")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"score": 1}, "decision_id: field required"),
        ({"decision_id": "x"}, "score: field required"),
        ({"decision_id": "x", "score": 1.01}, "score: must be at most 1"),
        ({"decision_id": "x", "score": True}, "score: must be a number"),
        (
            {"decision_id": "x", "score": 1, "sore": 1},
            "sore: there is no such key; allowed: decision_id, score",
        ),
        ({"decision_id": "x", "score": 1, "comment": "c" * 10_001}, "comment: must have at most"),
    ],
)
def test_a_mistake_is_named(server, fields, sentence):
    status, body = rate(server, **fields)
    assert status == 400
    assert sentence in body["error"]["message"]


def test_a_body_without_end_is_refused(server):
    status, _, raw = server.ask("POST", "/v1/feedback", b" " * 100_000)
    assert (status, json.loads(raw)["error"]["code"]) == (413, "body_too_large")
    assert json.loads(raw)["error"]["message"] == "the body is larger than 65536 bytes"  # no key of ours changes that


def test_without_a_log_the_answer_says_how_to_have_one():
    with running_server({"a": engine("a")}) as bare:
        status, body = rate(bare, decision_id="x", score=1)
        assert (status, body["error"]["code"]) == (404, "decision_not_found")
        assert "log.decisions" in body["error"]["message"]
