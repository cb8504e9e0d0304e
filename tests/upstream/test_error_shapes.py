"""Errors under HTTP 200 in shapes of their own, and what looks like a word but is none."""

import json

import pytest

from coe_server.http.answers.sse import Opening, before_error
from coe_server.upstream.answer import Says
from coe_server.upstream.complaint import Cause
from coe_server.upstream.verdict import judge_beginning, judge_body, judge_end, judge_event, judge_status


def event(payload, name=None):
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return (b"" if name is None else b"event: " + name.encode() + b"\n") + b"data: " + raw + b"\n\n"


def chunk(finish=None, **delta):
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def chat(finish="stop", usage=None, **message):
    return {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}], "usage": usage}


def status_of(payload, endpoint="chat"):
    verdict = judge_body(json.dumps(payload).encode(), endpoint, may_be_silent=False)
    assert verdict.is_failure
    return verdict.status


LIMIT = {"error": {"code": 429, "message": "x", "status": "RESOURCE_EXHAUSTED"}}
ERRORS = {
    "in a list": (event([LIMIT]), 429),
    "as it is": (json.dumps(LIMIT).encode(), 429),
    "as it is, in a list, over lines": (json.dumps([LIMIT], indent=2).encode() + b"\n\n", 429),
    "by its type alone": (event({"type": "too_many_requests_error", "message": "x", "code": "y"}), 429),
    "by its type in another spelling": (event({"type": "InternalServerError", "message": "x"}), 500),
    "an exception": (event({"type": "ThrottlingException", "message": "x"}), 429),
    "of a response": (event({"type": "response.error", "error": {"code": "rate_limit_exceeded"}}), 429),
    "busy": (
        event({"type": "error", "error": {"type": "service_unavailable_error", "code": "server_is_overloaded"}}),
        503,
    ),
    "with its code beside": (event({"error": {"message": "x"}, "code": 429}), 429),
    "with its code as a status": (event({"error": {"message": "x", "status_code": 503}}), 503),
    "in words": (event({"error": "Rate limit exceeded"}), 429),
    "in other words": (event({"error": {"message": "The server is overloaded"}}), 503),
    "of a choice": (chunk("network_error"), 502),
    "of a choice, with capitals": (chunk("ERROR"), 502),
    "of a choice without resources": (chunk("insufficient_system_resource"), 502),
    "of a choice that was ended": (chunk("abort"), 502),
}


@pytest.mark.parametrize(("raw", "status"), ERRORS.values(), ids=ERRORS)
def test_an_error_event_is_known_in_any_of_these_shapes(raw, status):
    verdict = judge_event(raw).verdict
    assert verdict is not None
    assert (verdict.status, verdict.is_failure) == (status, True)


@pytest.mark.parametrize("name", ["in a list", "as it is", "by its type alone", "of a choice"])
def test_it_is_known_after_the_first_word_too(name):
    word = chunk(content="a")
    sound, verdict = before_error(word + ERRORS[name][0])
    assert (sound, verdict is None) == (word, False)


def test_words_that_a_client_gave_are_no_code():
    assert status_of({"error": "invalid role 'rate limit'"}) == 502


NO_WORDS = {
    "nothing": b"data:\n\n",
    "a space": b"data: \n\n",
    "null": event(None),
    "a text": b"data: ping\n\n",
    "the end in quotes": event("[DONE]"),
    "a page": b"data: <html>Bad Gateway</html>\n\n",
    "a list": event([]),
    "brackets in a comment": b": " + b"[" * 40_000 + b"\n\n",
    "JSON that is no error, without a field": b'{"choices": [{"text": "a"}]}\n\n',
    "a name": chunk(role="assistant", name="Model AI", content=""),
    "an empty part": chunk(content=[{"type": "text", "text": ""}]),
}


@pytest.mark.parametrize("raw", NO_WORDS.values(), ids=NO_WORDS)
def test_what_has_no_content_is_no_word(raw):
    assert judge_event(raw).says is Says.NOTHING
    opening = Opening()
    assert not opening.hear(raw)
    assert opening.verdict(may_be_silent=True) is not None


@pytest.mark.parametrize("raw", [b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', b'data: {"choices":[{"de'])
def test_an_object_that_cannot_be_read_is_for_the_client(raw):
    assert judge_event(raw).says is Says.WORD


def test_a_thought_in_parts_is_a_word():
    assert judge_event(chunk(content=[{"type": "thinking", "thinking": [{"text": "a"}]}])).says is Says.WORD


@pytest.mark.parametrize("finish", ["STOP", "stop"])
def test_a_stop_in_capitals_is_silence(finish):
    assert judge_event(chunk(finish)).says is Says.SILENCE
    assert judge_event(chunk("SAFETY")).says is Says.WORD


@pytest.mark.parametrize("endpoint", ["chat", "responses", "messages", "embeddings", "rerank"])
def test_a_list_of_errors_is_the_first_of_them(endpoint):
    assert status_of([LIMIT], endpoint) == 429


def test_an_error_that_is_the_whole_body_has_its_own_code():
    assert status_of({"type": "too_many_requests_error", "message": "x", "code": "request_quota_exceeded"}) == 429
    assert status_of({"type": "api_error", "message": "x"}, "messages") == 500


@pytest.mark.parametrize("finish", ["abort", "network_error", "insufficient_system_resource", "ERROR"])
def test_half_an_answer_whose_generation_broke_is_none(finish):
    body = chat(finish, content="half")
    assert status_of(body) == 502
    long = json.dumps(chat(finish, content="x" * 70_000)).encode()
    assert judge_end(long[-65_536:]).is_failure


def test_a_long_list_of_errors_is_seen_at_its_beginning():
    assert judge_beginning(b'[{"error": {"message": "' + b"x" * 70_000).is_failure


def test_a_name_or_an_empty_part_is_no_answer():
    assert judge_body(json.dumps(chat(content="", name="Model AI")).encode(), "chat", False).cause is Cause.SILENT
    parts = [{"type": "text", "text": ""}]
    assert judge_body(json.dumps(chat(content=parts)).encode(), "chat", False).cause is Cause.SILENT


@pytest.mark.parametrize("name", ["completion", "output"])
def test_a_thought_that_is_counted_apart_is_a_token(name):
    usage = {f"{name}_tokens": 0, f"{name}_tokens_details": {"reasoning_tokens": 7}}
    assert judge_body(json.dumps(chat(content="", usage=usage)).encode(), "chat", False).cause is None


def test_embeddings_that_are_all_missing_are_none():
    assert status_of({"data": [{"embedding": None}]}, "embeddings") == 502
    assert judge_body(b'{"data": [{"embedding": null}, {"embedding": [0.5]}]}', "embeddings", False).cause is None


def test_any_list_under_an_error_status_is_read():
    assert judge_status(400, b'[{"message": "no", "code": "model_not_found"}]').cause is Cause.MODEL
