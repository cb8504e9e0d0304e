"""What the log and the metrics say of a request, beside what its client saw."""

import json
import logging

import pytest

from coe_server.cache.scheduler import Limits
from coe_server.errors import EngineDied, EngineStartFailed
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import Breaking, DiesAtOnce, DiesMidStream, simulated
from tests.http.test_failure import FOREVER, FRENCH, Says, open_stream, router, stream, team
from tests.patience import PATIENCE_SECONDS
from tests.test_metrics import value

__all__ = ["router"]  # a fixture
ALICE = Keyring((Key(name="alice", sha256=hashed("coe-alice")),))


class NeverStarts(Breaking):
    async def start(self, within_seconds=None, seat=(0,)):
        raise EngineStartFailed("it does not start")


def told(caplog):
    """The fields of the one line in the log of requests."""
    (record,) = [record for record in caplog.records if record.name == "coe.requests"]
    return record.fields


def test_after_a_fallback_the_line_the_header_and_the_count_name_the_answering_expert_and_the_reason(router, caplog):
    with caplog.at_level(logging.INFO), running_server(team(linguist=[DiesAtOnce]), router=router) as server:
        _, headers, _ = server.chat(model="auto", messages=FRENCH)
        counted = {
            (expert, reason): value(server, "coe_decisions_total", category="french", expert=expert, reason=reason)
            for expert in ("linguist", "big")
            for reason in ("mapped", "fallback")
        }
        routed = value(server, "coe_routing_seconds_count")
    line = told(caplog)
    assert (line["expert"], line["reason"]) == (headers["x-coe-expert"], headers["x-coe-reason"]) == ("big", "fallback")
    assert line["fallbacks"] == [{"expert": "linguist", "reason": "engine_died"}]
    assert counted == {
        ("linguist", "mapped"): 1,
        ("linguist", "fallback"): 0,
        ("big", "mapped"): 0,
        ("big", "fallback"): 1,
    }
    assert routed == 1  # nothing was routed again


def test_an_expert_that_was_never_reached_is_not_named_for_the_one_before_it(router, caplog):
    experts = team(linguist=[DiesAtOnce]) | {"big": NeverStarts("big", [])}
    with caplog.at_level(logging.INFO), running_server(experts, router=router) as server:
        server.chat(model="auto", messages=FRENCH)
    assert [one["expert"] for one in told(caplog)["fallbacks"]] == ["linguist", "big"]
    assert told(caplog)["expert"] == "coder"


@pytest.mark.parametrize(
    ("answer", "status"),
    [(Says(404, b"<html>no</html>"), 404), (Says(401, b"key?"), 502)],
)
def test_a_request_that_ends_with_an_error_of_ours_has_its_status_in_the_log(answer, status, caplog):
    with caplog.at_level(logging.INFO), running_server({"a": Breaking("a", [answer, answer])}) as server:
        assert server.chat(model="a")[0] == status
    assert told(caplog)["status"] == status
    assert told(caplog)["error"]


@pytest.mark.parametrize("status", [400, 500])
def test_an_experts_own_refusal_is_not_among_the_times_that_answers_take(status, caplog):
    refusal = Says(status, b'{"error": {"message": "no", "code": "no"}}')
    limits = Limits(death_notice_seconds=0)
    with caplog.at_level(logging.INFO), running_server({"a": Breaking("a", [refusal])}, limits=limits) as server:
        assert stream(server, model="a")[0] == status
        names = ("coe_time_to_first_token_seconds_count", "coe_answer_seconds_count")
        counted = [[value(server, name, expert="a") for name in names]]
        learned = ["service" in server.cache.measured_costs()["a"]]
        assert "first_token_ms" not in told(caplog)
        stream(server, model="a")
        counted.append([value(server, name, expert="a") for name in names])
        learned.append("service" in server.cache.measured_costs()["a"])
    assert (counted, learned) == ([[0, 0], [1, 1]], [False, True])


def test_a_stream_that_breaks_keeps_the_status_that_its_client_got(router, caplog):
    with caplog.at_level(logging.INFO), running_server(team(linguist=[DiesMidStream]), router=router) as server:
        assert stream(server)[0] == 200
    assert (told(caplog)["status"], told(caplog)["error"]) == (200, "engine_died")


def test_the_line_names_the_callers_key_and_never_the_key_itself(caplog):
    with caplog.at_level(logging.INFO), running_server({"a": Breaking("a", [])}, keyring=ALICE) as server:
        body = json.dumps({"model": "a", "messages": FRENCH})
        server.ask("POST", "/v1/chat/completions", body, {"authorization": "Bearer coe-alice"})
    assert told(caplog)["key"] == "alice"
    assert "coe-alice" not in "".join(str(record.__dict__) for record in caplog.records)


@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ("f2f4b3c0-6a0e-4c3e-9d62-6a5b1a0f7c11", "f2f4b3c0-6a0e-4c3e-9d62-6a5b1a0f7c11"),
        ("Root=1-67891233-abcdef012345678912345678;Sampled=1", "Root=1-67891233-abcdef012345678912345678;Sampled=1"),
        ("a" * 128, "a" * 128),
        ("a" * 129, None),
        ("two words", None),
        ("<script>", None),
        ("caf\u00e9", None),
        ("", None),
        (None, None),
    ],
)
def test_the_line_has_the_callers_own_id_beside_the_decisions_where_that_is_short_and_plain(given, logged, caplog):
    headers = {} if given is None else {"x-request-id": given}
    body = json.dumps({"model": "a", "messages": FRENCH})
    with caplog.at_level(logging.INFO), running_server({"a": simulated("a")}) as server:
        _, answered, _ = server.ask("POST", "/v1/chat/completions", body, headers)
    line = told(caplog)
    assert line["decision_id"] == answered["x-request-id"]
    assert line.get("caller_request_id") == logged
    assert ("caller_request_id" in line) == (logged is not None)


def ask_alice(server, **fields):
    """As a client that has a key and wants to know how many tokens it took."""
    body = json.dumps({"model": "a", "messages": FRENCH, "stream_options": {"include_usage": True}, **fields})
    return server.ask("POST", "/v1/chat/completions", body, {"authorization": "Bearer coe-alice"})


def tokens(server, name, **labels):
    return {kind: value(server, name, kind=kind, **labels) for kind in ("prompt", "cached_prompt", "completion")}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_tokens_that_an_answer_states_are_counted_by_expert_and_key_and_stand_in_the_log(is_streamed, caplog):
    with caplog.at_level(logging.INFO), running_server({"a": Breaking("a", [])}, keyring=ALICE) as server:
        _, _, raw = ask_alice(server, stream=is_streamed)
        counted = tokens(server, "coe_tokens_total", expert="a")
        assert counted == tokens(server, "coe_key_tokens_total", key="alice")
    events = [line[6:] for line in raw.splitlines() if line.startswith(b"data: {")] or [raw]
    stated = json.loads(events[-1])["usage"]
    assert counted == {"prompt": stated["prompt_tokens"], "cached_prompt": 0, "completion": stated["completion_tokens"]}
    assert {name: told(caplog)[name] for name in ("prompt_tokens", "completion_tokens")}.items() <= stated.items()


def test_what_states_nothing_counts_nothing(caplog):
    with caplog.at_level(logging.INFO), running_server({"a": Breaking("a", [])}) as server:
        stream(server, model="a")
        assert b"coe_tokens_total{" not in server.ask("GET", "/metrics")[2]
    assert not [name for name in told(caplog) if name.endswith("_tokens")]


EVENTS = (("content-type", "text/event-stream"),)


@pytest.mark.parametrize("rest", [(EngineDied("gone"),), (b'data: {"error": {"message": "no", "code": 500}}\n\n',), ()])
def test_an_answer_that_breaks_off_took_what_it_stated_before(rest, caplog):
    """And one whose last event has no end took what that states."""
    said = b'data: {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 5, "completion_tokens": %d}}'
    answer = Says(200, said % 1 + b"\n\n", *(rest or (said % 2,)), headers=EVENTS)
    with caplog.at_level(logging.INFO), running_server({"a": Breaking("a", [answer])}) as server:
        assert stream(server, model="a")[0] == 200
        assert tokens(server, "coe_tokens_total", expert="a")["completion"] == (1 if rest else 2)
    assert told(caplog)["prompt_tokens"] == 5
    assert ("error" in told(caplog)) == bool(rest)


def test_a_client_that_disconnects_is_charged_the_tokens_stated_by_then(caplog):
    said = (
        b'data: {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}\n\n'
    )
    answer = Says(200, said, FOREVER, headers=EVENTS)
    with caplog.at_level(logging.INFO), running_server({"a": Breaking("a", [answer])}) as server:
        with open_stream(server, model="a") as client:
            client.read_until(b"usage")
        assert answer.closed.wait(PATIENCE_SECONDS)
        assert tokens(server, "coe_tokens_total", expert="a")["prompt"] == 5
    assert (told(caplog)["hung_up"], told(caplog)["completion_tokens"]) == (True, 1)


def test_after_a_fallback_the_tokens_are_those_of_the_answering_expert(router):
    lost = Says(500, b'{"error": {"message": "oops"}, "usage": {"prompt_tokens": 666}}')
    with running_server(team(linguist=[lost]), router=router) as server:
        _, _, answer = server.chat(model="auto", messages=FRENCH)
        assert not any(tokens(server, "coe_tokens_total", expert="linguist").values())
        counted = tokens(server, "coe_tokens_total", expert="big")
    assert counted["completion"] == answer["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("path", "is_streamed"),
    [
        *(("/v1/completions", False), ("/v1/embeddings", False), ("/v1/responses", False), ("/v1/messages", False)),
        *(("/v1/responses", True), ("/v1/messages", True)),
    ],
)
def test_every_api_states_its_tokens(path, is_streamed):
    asked = {"prompt": "two words", "input": "two words", "messages": [{"role": "user", "content": "two words"}]}
    with running_server({"a": Breaking("a", [])}) as server:
        body = {"model": "a", "max_tokens": 3, "max_output_tokens": 3, "stream": is_streamed, **asked}
        assert server.ask("POST", path, json.dumps(body))[0] == 200
        counted = tokens(server, "coe_tokens_total", expert="a")
    assert (counted["prompt"], counted["completion"]) == (2, 0 if path == "/v1/embeddings" else 3)
