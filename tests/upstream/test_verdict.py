"""Whether what came under HTTP 200 is an answer, in the shapes that real servers use."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.upstream.answer import Says
from coe_server.upstream.complaint import Cause
from coe_server.upstream.verdict import judge_beginning, judge_body, judge_end, judge_event, judge_status


def chat(*choices, **more):
    return {"id": "1", "object": "chat.completion", "model": "m", "choices": list(choices), **more}


def choice(finish="stop", **message):
    return {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": finish}


def response(*output, status="completed", **more):
    return {"id": "resp_1", "object": "response", "status": status, "error": None, "output": list(output), **more}


def message(*content, stop="end_turn", **more):
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": list(content),
        "stop_reason": stop,
        **more,
    }


FAILED = {**choice("error", content=""), "error": {"code": 502, "message": "upstream broke"}}
ANSWERS = {
    "content": ("chat", chat(choice(content="yes"))),
    "parts": ("chat", chat(choice(content=[{"type": "text", "text": "yes"}]))),
    "reasoning": ("chat", chat(choice(reasoning="hm"))),
    "reasoning_content": ("chat", chat(choice(reasoning_content="hm"))),
    "refusal": ("chat", chat(choice(refusal="no"))),
    "audio": ("chat", chat(choice(audio={"id": "a", "data": "AAAA"}))),
    "a tool call": ("chat", chat(choice("tool_calls", tool_calls=[{"id": "1"}]))),
    "an old function call": ("chat", chat(choice(function_call={"name": "f"}))),
    "a length": ("chat", chat(choice("length", content=""))),
    "a filter": ("chat", chat(choice("content_filter", content=""))),
    "a refusal as reason": ("chat", chat(choice("refusal"))),
    "no error beside it": ("chat", chat(choice(content="yes"), error=None)),
    "one good choice of two": ("chat", chat(FAILED, choice(content="yes"))),
    "one good choice beside an error": ("chat", chat(choice(content="yes"), error={"message": "one failed"})),
    "a token that was nothing": ("chat", chat(choice(content=""), usage={"completion_tokens": 1})),
    "text": ("completions", {"choices": [{"text": "yes", "finish_reason": "stop"}]}),
    "an echo": ("completions", {"choices": [{"text": "asked", "finish_reason": "length"}]}),
    "a response": ("responses", response({"type": "message", "content": [{"type": "output_text", "text": "yes"}]})),
    "a response's call": ("responses", response({"type": "function_call", "name": "f"})),
    "a response's refusal": (
        "responses",
        response({"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}),
    ),
    "a response that is cut": (
        "responses",
        response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
    ),
    "a response for later": ("responses", response(status="queued")),
    "a message": ("messages", message({"type": "text", "text": "yes"})),
    "a message's call": ("messages", message({"type": "tool_use", "name": "f"}, stop="tool_use")),
    "a message's thought": ("messages", message({"type": "thinking", "thinking": "hm"})),
    "a message that is cut": ("messages", message(stop="max_tokens")),
    "a message that is refused": ("messages", message(stop="refusal")),
    "a message that pauses": ("messages", message(stop="pause_turn")),
    "embeddings": ("embeddings", {"data": [{"embedding": [0.0]}]}),
    "no tokens": ("tokenize", {"count": 0, "tokens": []}),
    "scores": ("score", {"data": []}),
}


@pytest.mark.parametrize(("endpoint", "body"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_one(endpoint, body):
    assert judge_body(json.dumps(body).encode(), endpoint, may_be_silent=False).cause is None


NO_ANSWERS = {
    "an error": ("chat", {"error": {"message": "Provider returned error", "code": 502}}),
    "an error in text": ("chat", {"error": "boom"}),
    "an error beside no choice": ("chat", chat(error={"message": "boom"})),
    "an error of an older server": ("chat", {"object": "error", "message": "boom", "code": 500}),
    "choices that all failed": ("chat", chat(FAILED, FAILED)),
    "a choice that failed, without more": ("chat", chat(choice("error"))),
    "a choice that failed after a word": ("chat", chat(choice("error", content="ye"))),
    "no choices": ("chat", chat()),
    "choices that are none": ("chat", {"choices": None}),
    "another API's answer": ("chat", {"data": [1]}),
    "a list": ("chat", [{"choices": []}]),
    "a failed response": ("responses", response(status="failed", error={"code": "server_error", "message": "boom"})),
    "a response of nothing": ("responses", {"id": "resp_1"}),
    "an error of a message": ("messages", {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
    "no embeddings": ("embeddings", {"data": None}),
    "an error of tokens": ("tokenize", {"error": "boom"}),
}


@pytest.mark.parametrize(("endpoint", "body"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_answer_is_the_experts_failure(endpoint, body):
    assert judge_body(json.dumps(body).encode(), endpoint, may_be_silent=True).is_failure


@pytest.mark.parametrize(
    "body", [b"", b" \n", b"<!doctype html><html>Sign in</html>", b"ok", b"upstream connect error", b"null"]
)
@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses", "messages", "embeddings"])
def test_what_is_no_json_is_the_experts_failure(endpoint, body):
    verdict = judge_body(body, endpoint, may_be_silent=True)
    assert (verdict.cause, verdict.backs_off) == (Cause.BROKEN, "in a row")


SILENT = [
    ("chat", chat(choice(content=""))),
    ("chat", chat(choice(content=None), usage={"completion_tokens": 0})),
    ("completions", {"choices": [{"text": "", "finish_reason": "stop"}]}),
    ("responses", response()),
    ("responses", response({"type": "message", "content": [{"type": "output_text", "text": ""}]})),
    ("messages", message()),
    ("messages", message({"type": "text", "text": ""})),
]


@pytest.mark.parametrize(("endpoint", "body"), SILENT)
def test_silence_is_an_answer_where_the_caller_asked_for_a_stop_or_a_token_was_counted(endpoint, body):
    raw = json.dumps(body).encode()
    verdict = judge_body(raw, endpoint, may_be_silent=False)
    assert (verdict.cause, verdict.is_failure, verdict.backs_off) == (Cause.SILENT, True, "never")
    assert judge_body(raw, endpoint, may_be_silent=True).cause is None
    counted = json.dumps({**body, "usage": {"completion_tokens": 1, "output_tokens": 1}}).encode()
    assert judge_body(counted, endpoint, may_be_silent=False).cause is None


def test_an_error_under_200_is_what_its_code_or_type_stands_for():
    def verdict(error):
        return judge_body(json.dumps({"error": error}).encode(), "chat", may_be_silent=False)

    assert verdict({"message": "x", "code": 429}).status == 429
    assert verdict({"message": "x", "code": "402"}).status == 402
    assert verdict({"message": "x", "type": "overloaded_error"}).status == 529
    assert verdict({"message": "x", "code": "rate_limit_exceeded"}).status == 429
    assert verdict({"message": "x"}).status == 502
    assert verdict("x").status == 502
    assert verdict({"message": "x", "code": 400}).cause is Cause.CALLER
    assert verdict({"message": "temperature", "type": "invalid_request_error"}).cause is Cause.CALLER
    assert verdict({"message": "context length", "type": "invalid_request_error"}).cause is Cause.CONTEXT
    assert verdict({"message": "loaded with a context length of only 4096 tokens"}).cause is Cause.CONTEXT
    assert verdict("Unexpected endpoint or method. (POST /v1/messages)").cause is Cause.PATH


def test_the_code_of_an_error_in_text_stands_beside_it():
    def status(**payload):
        return judge_body(json.dumps(payload).encode(), "chat", may_be_silent=False).status

    assert status(error="boom", code=429) == 429
    assert status(error="boom", error_type="overloaded") == 529
    assert judge_event(event(error="boom", error_type="overloaded")).verdict.status == 529
    assert judge_status(400, b'{"error": "no", "code": "model_not_found"}').cause is Cause.MODEL


@pytest.mark.parametrize(
    ("body", "is_answer"),
    [
        (b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n', True),
        (b'data: {"error":{"message":"boom","code":502}}\n\n', False),
        (b"data: [DONE]\n\n", False),
        (b'{"choices":[{"delta":{"content":"x"}}]}\n{"done":true}\n', True),
        (b'{"error":"boom"}\n{"done":true}\n', False),
    ],
)
def test_events_that_are_called_something_else_are_read_as_what_they_are(body, is_answer):
    assert (judge_body(body, "chat", may_be_silent=False).cause is None) is is_answer


def test_a_long_body_is_looked_at_at_both_ends():
    answer = json.dumps(chat(choice(content='an \\"error\\": {"finish_reason": "error"}' * 5_000))).encode()
    assert judge_beginning(answer[:65_536]).cause is None
    assert judge_end(answer[-65_536:]).cause is None
    assert judge_beginning(b"\xef\xbb\xbf" + answer[:65_536]).cause is None
    assert judge_beginning(b"<html>" + b"x" * 70_000).is_failure
    assert judge_beginning(b' {"error": {"message": "' + b"x" * 70_000).is_failure
    assert judge_beginning(b'{"error": null, "choices": [' + b" " * 70_000).cause is None
    long = "x" * 70_000
    assert judge_end(json.dumps(chat(choice("error", content=long))).encode()[-65_536:]).is_failure
    broken = {"id": "1", "note": long, "error": {"message": "boom", "code": 503}}
    assert judge_end(json.dumps(broken).encode()[-65_536:]).status == 503
    assert judge_end(json.dumps({**broken, "error": None}).encode()[-65_536:]).cause is None


def event(name=None, **payload):
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + json.dumps(payload).encode() + b"\n\n"


def chunk(finish=None, **delta):
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


EVENTS = {
    "a comment": (b": PROCESSING\n\n", Says.NOTHING),
    "a role": (chunk(role="assistant", content=""), Says.NOTHING),
    "an empty delta": (chunk(), Says.NOTHING),
    "a null delta": (chunk(content=None, tool_calls=None), Says.NOTHING),
    "no choices": (event(choices=[], prompt_filter_results=[{"prompt_index": 0}]), Says.NOTHING),
    "an empty text": (event(choices=[{"text": "", "finish_reason": None}]), Says.NOTHING),
    "a word": (chunk(content="a"), Says.WORD),
    "a text": (event(choices=[{"text": "a"}]), Says.WORD),
    "a word after a byte order mark": (b"\xef\xbb\xbf" + chunk(content="a"), Says.WORD),
    "a thought": (chunk(reasoning_content="a"), Says.WORD),
    "a call": (chunk(tool_calls=[{"index": 0}]), Says.WORD),
    "a length": (chunk("length"), Says.WORD),
    "a stop": (chunk("stop"), Says.SILENCE),
    "the end": (b"data: [DONE]\n\n", Says.NOTHING),
    "a response begins": (event("response.created", type="response.created", response={}), Says.NOTHING),
    "a response's message begins": (event(type="response.output_item.added", item={"type": "message"}), Says.NOTHING),
    "a response's call begins": (event(type="response.output_item.added", item={"type": "function_call"}), Says.WORD),
    "a response's word": (event(type="response.output_text.delta", delta="a"), Says.WORD),
    "a response of nothing": (event(type="response.completed", response=response()), Says.SILENCE),
    "a response that is cut": (event(type="response.incomplete", response=response(status="incomplete")), Says.WORD),
    "a ping": (event("ping", type="ping"), Says.NOTHING),
    "a message begins": (event(type="message_start", message={"content": []}), Says.NOTHING),
    "a message's text begins": (
        event(type="content_block_start", content_block={"type": "text", "text": ""}),
        Says.NOTHING,
    ),
    "a message's call begins": (event(type="content_block_start", content_block={"type": "tool_use"}), Says.WORD),
    "null choices": (event(id="1", choices=None), Says.NOTHING),
    "nothing at all": (b"data: {}\n\n", Says.NOTHING),
    "a sign of life": (event("keepalive", type="keepalive", sequence_number=3), Says.NOTHING),
    "a whole answer as an event": (event(choices=[choice(content="a")]), Says.WORD),
    "a response's empty word": (event(type="response.output_text.delta", delta=""), Says.NOTHING),
    "the end of a response's empty text": (event(type="response.output_text.done", text=""), Says.NOTHING),
    "the end of a response's text": (event(type="response.output_text.done", text="a"), Says.WORD),
    "the end of an empty part": (
        event(type="response.content_part.done", part={"type": "output_text", "text": ""}),
        Says.NOTHING,
    ),
    "the end of an empty item": (event(type="response.output_item.done", item={"type": "message"}), Says.NOTHING),
    "the end of a call": (event(type="response.output_item.done", item={"type": "function_call"}), Says.WORD),
    "a message's empty word": (
        event(type="content_block_delta", delta={"type": "text_delta", "text": ""}),
        Says.NOTHING,
    ),
    "a message's word": (event(type="content_block_delta", delta={"text": "a"}), Says.WORD),
    "a message ends": (event(type="message_delta", delta={"stop_reason": "end_turn"}), Says.SILENCE),
    "a message is cut": (event(type="message_delta", delta={"stop_reason": "max_tokens"}), Says.WORD),
}


@pytest.mark.parametrize(("raw", "says"), EVENTS.values(), ids=EVENTS)
def test_what_an_event_says(raw, says):
    found = judge_event(raw)
    assert (found.says, found.verdict) == (says, None)


ERRORS = {
    "an error": (event(error={"message": "boom", "code": 502}), 502),
    "with a limit": (event(error={"message": "boom", "code": 429}), 429),
    "with a code in words": (event(error={"message": "boom", "code": "insufficient_quota"}), 429),
    "with a number in words": (event(error={"message": "boom", "code": "402"}), 402),
    "in text": (event(error="boom"), 502),
    "in text, with a code": (event(error="boom", code=401), 401),
    "by its name": (event("error", message="boom", code=503), 503),
    "by its name, in text": (b"event: error\ndata: boom\n\n", 502),
    "by its name, without a word": (b"event: error\ndata: {}\n\n", 502),
    "by its name, with nothing": (b"event: error\ndata:\n\n", 502),
    "by its type": (event(type="error", code="server_error", message="boom"), 500),
    "of an older server": (event(object="error", message="boom", code=500), 500),
    "Anthropic's": (event("error", type="error", error={"type": "overloaded_error", "message": "boom"}), 529),
    "a response's": (
        event(type="response.failed", response={"error": {"code": "server_error", "message": "boom"}}),
        500,
    ),
    "a response's without a word": (event(type="response.failed", response=None), 502),
    "a choice's": (
        event(choices=[{"delta": {"content": ""}, "finish_reason": "error"}], error={"message": "boom", "code": 503}),
        503,
    ),
    "a choice's, without more": (event(choices=[{"delta": {}, "finish_reason": "error"}]), 502),
    "a choice's own": (event(choices=[{"delta": {}, "finish_reason": "error", "error": {"code": 503}}]), 503),
    "beside a choice that says nothing": (event(choices=[{"delta": {"content": ""}}], error={"code": 503}), 503),
    "over several lines": (b'data: {"error":\ndata: {"message": "boom", "code": 503}}\n\n', 503),
    "with other line ends": (b'event: error\rdata: {"message": "boom", "code": 503}\r\r', 503),
}


@pytest.mark.parametrize(("raw", "status"), ERRORS.values(), ids=ERRORS)
def test_an_error_event_is_one_in_every_shape(raw, status):
    verdict = judge_event(raw).verdict
    assert verdict is not None
    assert (verdict.status, verdict.is_failure) == (status, True)


CALLERS = {
    "a number": event(error={"message": "temperature", "code": 400}),
    "a type": event(error={"message": "temperature", "type": "invalid_request_error", "code": "x"}),
    "Anthropic's": event(type="error", error={"type": "invalid_request_error", "message": "no"}),
    "a response's": event(type="response.failed", response={"error": {"code": "invalid_prompt"}}),
    "a response's image": event(type="response.failed", response={"error": {"code": "invalid_image_format"}}),
}


@pytest.mark.parametrize("raw", CALLERS.values(), ids=CALLERS)
def test_an_error_event_may_tell_of_the_callers_mistake(raw):
    assert judge_event(raw).verdict.cause is Cause.CALLER


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["error", "stop", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "choices", "delta", "message", "type", "code", "response", "usage", "output", "text"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)
ENDPOINTS = st.sampled_from(["chat", "completions", "responses", "messages", "embeddings", "rerank"])


@given(JSON, ENDPOINTS, st.booleans())
def test_any_json_gets_a_verdict(payload, endpoint, may_be_silent):
    raw = json.dumps(payload).encode()
    judge_body(raw, endpoint, may_be_silent)
    judge_event(b"data: " + raw + b"\n\n")
    judge_beginning(raw)
    judge_end(raw)


@given(st.binary(max_size=60), ENDPOINTS)
def test_any_bytes_get_a_verdict(raw, endpoint):
    judge_body(raw, endpoint, may_be_silent=False)
    judge_event(raw)
    judge_beginning(raw)
    judge_end(raw)
