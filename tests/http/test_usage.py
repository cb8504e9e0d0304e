"""Tokens that an answer states are found however it is cut, and nothing that only looks like them is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.http.answers.sse import EventCutter
from coe_server.http.answers.usage import MOST_TOKENS, UNSTATED, WINDOW_BYTES, Usage, UsageInBody, UsageInEvents

LIES = ('"usage": {"prompt_tokens": 666}', '"usage', 'my "usage', "usage", "\\", '"', '"usage": {', "}}", "é\n\n")
TEXTS = st.lists(st.sampled_from(LIES) | st.text(max_size=3), max_size=3).map("".join)
COUNTS = st.integers(0, 5) | st.sampled_from((-1, True, None, 1e30, "7", 10**30, MOST_TOKENS, MOST_TOKENS + 1))
STATED = st.dictionaries(st.sampled_from(("prompt_tokens", "completion_tokens", "input_tokens", "x")), COUNTS)
KEYS = st.sampled_from(("usage", "", "tools", "message")) | TEXTS
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS | STATED,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
BODIES = st.dictionaries(KEYS, VALUES, max_size=5)
WRITTEN = st.sampled_from(({}, {"ensure_ascii": False}, {"indent": 1}, {"separators": (",", ":")}))


def cut(data, whole):
    places = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    return [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]


def read(reader, *pieces):
    for piece in pieces:
        reader.hear(piece)
    return reader.usage()


def in_body(fields, **written):
    return read(UsageInBody(), json.dumps(fields, **written).encode())


def in_events(*payloads):
    return read(UsageInEvents(), *(event(payload) for payload in payloads))


def event(payload, **written):
    return b"data: " + json.dumps(payload, **written).encode("utf-8", "surrogatepass") + b"\n\n"


@given(BODIES, WRITTEN, st.data())
def test_what_a_body_states_is_what_its_own_usage_says_and_nothing_deeper(fields, written, data):
    stated = fields.get("usage")
    pieces = cut(data, json.dumps(fields, **written).encode("utf-8", "surrogatepass"))
    assert read(UsageInBody(), *pieces) == (in_body({"usage": stated}) if isinstance(stated, dict) else UNSTATED)


@given(st.lists(TEXTS), st.none() | STATED, st.sampled_from(({}, {"ensure_ascii": False})), st.data())
def test_what_a_stream_states_is_found_behind_any_words(words, stated, written, data):
    chunks = [
        {"choices": [{"index": n % 2, "delta": {"content": word}}], "usage": None} for n, word in enumerate(words)
    ]
    if stated is not None:
        chunks.append({"choices": [], "usage": stated})
    stream = b"".join(event(chunk, **written) for chunk in chunks) + b"data: [DONE]\n\n"
    cutter, reader = EventCutter(), UsageInEvents()
    for piece in cut(data, stream):
        reader.hear(cutter.whole_events(piece))
    assert reader.usage() == (UNSTATED if stated is None else in_body({"usage": stated}))


@given(
    st.binary()
    | st.lists(st.sampled_from((b'"usage":{', b'"usage":', b"{", b'{"":{', b"}", b"[", b'"', b"\\", b"\n"))).map(
        b"".join
    )
)
def test_text_that_is_no_json_does_no_harm(nonsense):
    for reader in (UsageInBody(), UsageInEvents()):
        assert read(reader, b'{"usage":{"prompt_tokens": 3', nonsense, b"\xff") == UNSTATED


OPENAI = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
RESPONSES = {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 8}}
ANTHROPIC = {"input_tokens": 1, "cache_read_input_tokens": 6, "cache_creation_input_tokens": 2, "output_tokens": 4}


@pytest.mark.parametrize(
    ("stated", "usage"),
    [
        (OPENAI, Usage(9, None, 4)),
        ({**OPENAI, "prompt_tokens_details": {"cached_tokens": 8}}, Usage(9, 8, 4)),
        ({**OPENAI, "prompt_tokens_details": None}, Usage(9, None, 4)),
        ({**OPENAI, "cache_read_input_tokens": 5}, Usage(9, 5, 4)),
        (RESPONSES, Usage(9, 8, 4)),
        (ANTHROPIC, Usage(9, 6, 4)),
        ({"prompt_tokens": 9, "total_tokens": 9}, Usage(9)),
        ({"total_tokens": 9}, UNSTATED),
        ({**OPENAI, "prompt_tokens": -1}, Usage(None, None, 4)),
        ({**OPENAI, "completion_tokens": True}, Usage(9)),
        ({**OPENAI, "completion_tokens": 1e30}, Usage(9)),
        ({**OPENAI, "completion_tokens": MOST_TOKENS + 1}, Usage(9)),
        ({**OPENAI, "prompt_tokens_details": {"cached_tokens": 10}}, Usage(9, 9, 4)),
        ({"prompt_tokens_details": [8], "prompt_tokens": "9"}, UNSTATED),
        ({"cached_tokens": 3}, UNSTATED),
        (None, UNSTATED),
        ([OPENAI], UNSTATED),
    ],
)
def test_each_api_has_words_of_its_own_and_no_count_is_believed_that_cannot_be_one(stated, usage):
    assert in_body({"choices": [], "usage": stated, "prompt_logprobs": None}) == usage
    assert in_events({"choices": [], "usage": stated}) == usage


def test_anthropics_streams_say_it_in_two_places():
    message = {"id": "msg_1", "content": [], "usage": {**ANTHROPIC, "output_tokens": 1}}
    begun = {"type": "message_start", "message": message}
    said = {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": '{"usage": {}}'}}
    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}
    assert in_events(begun, said, ended, {"type": "message_stop"}) == Usage(9, 6, 4)
    assert in_events(begun, said) == Usage(9, 6, 1)


def test_the_end_of_a_stream_of_responses_repeats_the_whole_and_states_it_once():
    tool = {"name": "measure", "parameters": {"properties": {"usage": {"prompt_tokens": 666}}}}
    begun = {"type": "response.created", "response": {"usage": None, "tools": [tool]}}
    whole = {"output": [{"text": "word " * 300_000}], "tools": [tool], "usage": RESPONSES, "metadata": {"usage": "x"}}
    ended = {"type": "response.completed", "response": whole, "sequence_number": 9}
    assert in_events(begun, ended) == Usage(9, 8, 4)
    assert in_events(begun) == UNSTATED


def test_only_the_key_itself_states_usage():
    lie = {"prompt_tokens": 666}
    for fields in ({'my "usage': lie}, {"metadata": {"usage": lie}}, {"say": '"usage": {"prompt_tokens": 666}}'}):
        assert in_body(fields) == UNSTATED
        assert in_body({"usage": OPENAI, **fields}) == Usage(9, None, 4)
    assert in_events({'my "usage': lie}) == UNSTATED


def test_of_a_stream_that_states_it_with_every_word_the_last_counts():
    events = [event({"choices": [{}], "usage": {**OPENAI, "completion_tokens": count}}) for count in (1, 2, 3)]
    assert read(UsageInEvents(), b"".join(events)) == read(UsageInEvents(), *events) == Usage(9, None, 3)


def test_a_member_that_goes_on_in_another_line_of_an_event_is_passed_over():
    assert read(UsageInEvents(), b'data: {"usage":\n{"prompt_tokens": 3}}\n\n') == UNSTATED
    assert read(UsageInBody(), b'{"usage":\n{"prompt_tokens": 3}}\n') == Usage(3)


def test_a_tool_that_is_called_with_usage_is_not_billed():
    called = {"type": "tool_use", "input": {"usage": {"input_tokens": 666, "output_tokens": 666}}}
    assert in_body({"content": [called], "usage": ANTHROPIC}) == Usage(9, 6, 4)
    assert in_body({"usage": ANTHROPIC, "content": [called]}) == Usage(9, 6, 4)
    assert in_body({"content": [called]}) == UNSTATED


def test_of_a_huge_answer_only_the_end_is_kept():
    head = b'{"data": [' + b"0.125, " * 1000
    end = b'0], "usage": ' + json.dumps(OPENAI).encode() + b"}"
    reader = UsageInBody()
    for _ in range(200):
        reader.hear(head)
    assert read(reader, end[:20], end[20:]) == Usage(9, None, 4)
    assert len(reader._end) <= 2 * WINDOW_BYTES
    assert read(UsageInBody(), head * 200 + end) == Usage(9, None, 4)
    for far in (in_body, in_events):
        assert far({"usage": OPENAI, "data": "x" * WINDOW_BYTES}) == UNSTATED


def test_many_places_that_are_none_and_endless_nesting_state_nothing():
    places = b'{"usage":{"x":' + b'"usage":{},' * 5000
    assert read(UsageInBody(), places) == UNSTATED
    assert read(UsageInEvents(), b"data: " + places + b"\n\n") == UNSTATED
    assert in_body("[" * 5000) == UNSTATED
    assert read(UsageInBody(), b'{"usage": {"prompt_tokens": ' + b"[" * 60_000) == UNSTATED  # deeper than is read
