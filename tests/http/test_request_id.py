"""Every answer has an id by which it can be reported."""

import json

import openai
import pytest

from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import Breaking, simulated
from tests.http.test_failure import FRENCH, Says, open_stream, stream

RING = Keyring((Key(name="alice", sha256=hashed("coe-alice"), requests_per_minute=9, admin=True),))
CHAT = json.dumps({"model": "a", "messages": FRENCH})


@pytest.fixture(scope="module")
def server():
    with running_server({"a": simulated("a")}) as running:
        yield running


def test_an_answers_id_is_its_decisions_which_openais_client_shows(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model="a", messages=FRENCH)
        assert raw.parse()._request_id == raw.headers["x-coe-decision-id"]
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="gpt-5", messages=FRENCH)
        assert caught.value.request_id
    _, headers, _ = stream(server, model="a")
    assert headers["x-request-id"] == headers["x-coe-decision-id"]


def test_a_dry_runs_id_is_its_decisions(server):
    _, headers, raw = server.ask("POST", "/v1/route", CHAT)
    assert headers["x-request-id"] == json.loads(raw)["decision_id"]


def test_every_other_answer_has_a_new_one_and_never_the_callers(server):
    paths = ("/healthz", "/v1/models", "/nowhere", "/admin/experts")
    given = [server.ask("GET", path, None, {"x-request-id": "mine"})[1]["x-request-id"] for path in paths * 2]
    assert len({*given, "mine"}) == len(given) + 1


def test_a_request_that_is_turned_away_has_one_and_limits_stand_beside_it():
    with running_server({"a": simulated("a")}, keyring=RING) as server:
        assert server.ask("POST", "/v1/chat/completions", CHAT)[1]["x-request-id"]
        _, headers, _ = server.ask("POST", "/v1/chat/completions", CHAT, {"authorization": "Bearer coe-alice"})
        assert headers["x-request-id"] == headers["x-coe-decision-id"]
        assert headers["x-ratelimit-limit-requests"] == "9"


def test_an_engines_own_id_is_not_passed_on():
    answer = Says(200, b"{}", headers=(("content-type", "application/json"), ("X-Request-Id", "theirs")))
    with running_server({"a": Breaking("a", [answer])}) as server, open_stream(server, model="a") as client:
        head = client.read_until(b"\r\n\r\n").lower()
    assert head.count(b"x-request-id: ") == 1
    assert b"theirs" not in head
