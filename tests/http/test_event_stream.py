"""Events cut out of chunks: whole, byte for byte, and told apart from failures, however the network cuts them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.http.answer.event_stream import LONGEST_HELD_BYTES, EventCutter, events_in, first_failure, is_opening

WORD = b'data: {"choices": [{"delta": {"content": "an \\"error\\" of mine"}}]}'
DEATH = b'data: {"error": {"message": "EngineCore died", "code": 500}}'
MISTAKE = b'data: {"error": {"message": "temperature", "code": 400}}'
ENDS = st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n\r\n"])
EVENT = st.builds(lambda line, end: line + end, st.sampled_from([WORD, DEATH, MISTAKE, b": a comment", b"x\ny"]), ENDS)


@given(st.lists(EVENT), st.sampled_from([b"", b"data: half", b"data: half\r\n"]), st.data())
def test_however_a_stream_is_cut_whole_events_leave_and_nothing_is_lost(events, rest, data):
    stream = b"".join(events) + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    cutter, out = EventCutter(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        piece = cutter.whole_events(stream[start:end])
        assert not piece or piece.endswith((b"\n\n", b"\n\r\n"))
        out.append(piece)
    assert b"".join(out) + cutter.rest == stream
    assert cutter.rest == rest
    assert list(events_in(b"".join(events))) == events


def test_the_beginning_of_an_event_is_not_held_without_end():
    cutter = EventCutter()
    assert cutter.whole_events(b"x" * LONGEST_HELD_BYTES) == b""
    assert cutter.whole_events(b"x") == b"x" * (LONGEST_HELD_BYTES + 1)
    assert cutter.rest == b""


@given(st.lists(st.sampled_from([WORD, MISTAKE]).map(lambda line: line + b"\n\n")))
def test_a_failure_is_found_where_it_stands_and_a_callers_mistake_is_none(before):
    sound = b"".join(before)
    assert first_failure(sound) is None
    failure = first_failure(sound + DEATH + b"\n\n" + DEATH + b"\n\n")
    assert (failure.start, failure.message) == (len(sound), "EngineCore died")


def event(**payload):
    return b"event: x\ndata: " + json.dumps(payload).encode() + b"\n\n"


FAILED = {"type": "response.failed", "response": {"id": "resp_1", "error": {"code": "server_error", "message": "oops"}}}
FAILURES = {
    "chat": event(error={"message": "oops", "type": "server_error", "code": "x"}),
    "chat, as a choice": event(
        choices=[{"delta": {"content": ""}, "finish_reason": "error"}], error={"message": "oops"}
    ),
    "responses": event(type="error", code="server_error", message="oops", param=None),
    "responses, as a state": event(**FAILED),
    "messages": event(type="error", error={"type": "overloaded_error", "message": "oops"}),
}
NONE = {
    "chat": event(error={"message": "no", "type": "invalid_request_error", "code": "context_length_exceeded"}),
    "a choice that goes on": event(choices=[{"delta": {"content": "x"}}], error={"message": "no"}),
    "choices that are none": event(choices=5, error=None),
    "responses, as a state": event(type="response.failed", response={"error": {"code": "invalid_prompt"}}),
    "a state that is none": event(type="response.failed", response="error"),
    "a response that goes on": event(type="response.created", response={"id": "resp_1", "error": None}),
    "messages": event(type="error", error={"type": "invalid_request_error", "message": "no"}),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_every_api_tells_of_a_failure_in_words_of_its_own(failure):
    assert (first_failure(failure).start, first_failure(failure).message) == (0, "oops")


@pytest.mark.parametrize("none", NONE.values(), ids=NONE)
def test_every_api_tells_of_a_callers_mistake_in_words_of_its_own(none):
    assert first_failure(none) is None


def test_a_comment_opens_and_a_word_does_not():
    assert is_opening(b": ping\n\n")
    assert is_opening(b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n')
    assert not is_opening(WORD + b"\n\n")
    assert not is_opening(b"data: [DONE]\n\n")
