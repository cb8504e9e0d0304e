"""What a caller asks for beside the conversation is read as engines read it, and null is nothing."""

import json

import pytest
from pydantic import TypeAdapter

from coe_server.errors import RequestError
from coe_server.http.apis import CoeOptions, read_options, wants_stream
from tests.http.server import running_server
from tests.http.test_api import simulated

TRUE = [True, 1, 1.0, "1", "true", "True", "TRUE", "t", "yes", "y", "Y", "on", "ON"]
FALSE = [False, None, 0, 0.0, "0", "false", "False", "f", "no", "n", "off"]
NEITHER = [2, -1, 0.5, "", "maybe", "2", [], [True], {}, {"a": 1}, 10**30]


@pytest.mark.parametrize("given", TRUE, ids=repr)
def test_what_vllm_takes_for_true_streams(given):
    assert TypeAdapter(bool).validate_python(given) is True
    assert wants_stream({"stream": given})


@pytest.mark.parametrize("given", [*FALSE, *NEITHER], ids=repr)
def test_what_vllm_takes_for_false_or_refuses_does_not_stream(given):
    assert not wants_stream({"stream": given})
    assert not wants_stream({})


@pytest.mark.parametrize("stream", [True, 1, "true", "on"])
@pytest.mark.parametrize("padding", [0, 80_000], ids=["small", "large"])
def test_a_stream_that_is_asked_for_otherwise_is_kept_alive_as_well(stream, padding):
    with running_server({"a": simulated("a", start_seconds=0.5)}, keepalive_seconds=0.05) as server:
        fields = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "stream": stream, "x": "x" * padding}
        status, headers, raw = server.ask("POST", "/v1/chat/completions", json.dumps(fields))
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert b": coe waiting expert=a" in raw


def read(coe):
    return read_options({"model": "a", "coe": coe}, ["quality"], ["a"], "quality")


def test_null_for_all_options_or_for_each_is_none():
    nothing = read_options({"model": "a"}, ["quality"], ["a"], "quality")
    assert read(None) == read({}) == nothing
    for name in CoeOptions.model_fields:
        assert read({name: None}) == nothing
    assert read(dict.fromkeys(CoeOptions.model_fields)) == nothing


def test_null_for_an_option_that_does_not_exist_is_refused_like_any_other_value():
    with pytest.raises(RequestError, match=r"coe\.surprise: there is no such key"):
        read({"surprise": None})


def test_a_request_with_null_for_its_options_is_answered():
    with running_server({"a": simulated("a")}) as server:
        assert server.chat(model="a", coe=None)[0] == 200
        assert server.chat(model="a", coe={"priority": None, "session": None})[0] == 200
