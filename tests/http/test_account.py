"""What the log and the metrics say of a request, beside what its client saw."""

import json
import logging

import pytest

from coe_server.errors import EngineStartFailed
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import Breaking, DiesAtOnce, DiesMidStream, simulated
from tests.http.test_failure import FRENCH, Says, router, stream, team
from tests.test_telemetry import value

__all__ = ["router"]  # a fixture
ALICE = Keyring((Key(name="alice", sha256=hashed("coe-alice")),))


class NeverStarts(Breaking):
    async def start(self, within_seconds=None):
        raise EngineStartFailed("it does not start")


def told(caplog):
    """The fields of the one line in the log of requests."""
    (record,) = [record for record in caplog.records if record.name == "coe.requests"]
    return record.fields


def test_after_a_fallback_the_line_the_header_and_the_count_name_who_answered_and_why(router, caplog):
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
