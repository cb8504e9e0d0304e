"""The shapes in which an error reaches the clients of OpenAI and of Anthropic."""

import json

import pytest

from coe_server import errors
from coe_server.http.errors import error_body, error_response
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import simulated

ANTHROPICS = {
    "invalid_request_error": errors.RequestError("x"),
    "authentication_error": errors.InvalidApiKey("x"),
    "permission_error": errors.Forbidden("x"),
    "not_found_error": errors.UnknownModel("x"),
    "request_too_large": errors.BodyTooLarge("x"),
    "rate_limit_error": errors.Overloaded("x", 1.0),
    "overloaded_error": errors.ExpertUnavailable("x"),
    "timeout_error": errors.GenerationTimeout("x"),
    "api_error": errors.EngineDied("x"),
}


@pytest.mark.parametrize("kind", ANTHROPICS)
def test_an_error_has_anthropics_type_on_its_paths_and_openais_elsewhere(kind):
    error = ANTHROPICS[kind]
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        body = error_body(error, path)
        assert (body["type"], body["error"]["type"], body["error"]["code"]) == ("error", kind, error.code)
    assert error_body(error, "/v1/chat/completions")["error"]["type"] == error.type


def test_what_may_be_tried_again_says_when():
    later = {kind for kind in vars(errors).values() if getattr(kind, "status", None) in (429, 503)}
    assert len(later) > 5
    for kind in later:
        error = kind("x", 1.4) if issubclass(kind, errors.Overloaded) else kind("x")
        assert int(error_response(error).headers["retry-after"]) >= 1, kind
    assert "retry-after" not in error_response(errors.EngineDied("x")).headers


def test_what_was_not_sent_again_here_may_be_sent_again_by_the_client():
    assert error_response(errors.ConnectionLost("x")).headers["x-should-retry"] == "true"
    assert "x-should-retry" not in error_response(errors.EngineDied("x")).headers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/nothing%0Athere"])
def test_a_line_break_of_the_request_does_not_cut_the_sentence(path):
    with running_server({"only": simulated("only")}) as server:
        body = json.dumps({"model": "a\nb", "messages": [{"role": "user", "content": "hello"}]})
        method = "POST" if "chat" in path else "GET"
        status, _, raw = server.ask(method, path, body if method == "POST" else None)
    told = json.loads(raw)["error"]["message"]
    assert status == 404
    assert told.endswith("lists the paths" if "nothing" in path else "only"), told
    assert "\\n" in told
    assert "\n" not in told


def test_what_is_refused_at_the_door_and_behind_it_has_anthropics_types():
    ring = Keyring((Key(name="alice", sha256=hashed("coe-alice")),))
    with running_server({"a": simulated("a")}, keyring=ring) as server:
        body = json.dumps({"model": "gpt-5", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]})
        told = [
            json.loads(server.ask("POST", "/v1/messages", body, {"x-api-key": key})[2])["error"]["type"]
            for key in ("wrong", "coe-alice")
        ]
    assert told == ["authentication_error", "not_found_error"]
