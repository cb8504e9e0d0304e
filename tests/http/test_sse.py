"""Events cut out of chunks: whole, byte for byte, and told apart from failures, however the network cuts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.http.answers.sse import JUDGED_BYTES, LONGEST_HELD_BYTES, EventCutter, Opening, before_error, parts_of
from coe_server.upstream.verdict import NO_EVENTS, SILENT, events_in

WORD = b'data: {"choices": [{"delta": {"content": "an \\"error\\" of mine"}}]}'
DEATH = b'data: {"error": {"message": "EngineCore died", "code": 500}}'
MISTAKE = b'data: {"error": {"message": "temperature", "code": 400}}'
ENDS = st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\r"])
EVENT = st.builds(lambda line, end: line + end, st.sampled_from([WORD, DEATH, MISTAKE, b": a comment", b"x\ny"]), ENDS)


@given(st.lists(EVENT), st.sampled_from([b"", b"data: half", b"data: half\r\n"]), st.data())
def test_however_a_stream_is_cut_whole_events_leave_and_nothing_is_lost(events, rest, data):
    stream = b"".join(events) + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    cutter, out = EventCutter(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        piece = cutter.whole_events(stream[start:end])
        assert not piece or piece.endswith((b"\n\n", b"\n\r\n", b"\r\r"))
        out.append(piece)
    assert b"".join(out) + cutter.rest == stream
    assert cutter.rest == rest
    assert list(events_in(b"".join(events))) == events


def test_the_beginning_of_an_event_is_not_held_without_end():
    cutter = EventCutter()
    assert cutter.whole_events(b"x" * LONGEST_HELD_BYTES) == b""
    assert cutter.whole_events(b"x") == b"x" * (LONGEST_HELD_BYTES + 1)
    assert cutter.rest == b""


@pytest.mark.parametrize("end", [b"\n\n", b"\n\r\n", b"\r\r"])
def test_an_event_in_small_pieces_is_whole_at_its_end_wherever_that_is_cut(end):
    event = b"data: " + b"x" * 5_000 + end
    cutter = EventCutter()
    pieces = [cutter.whole_events(event[at : at + 1]) for at in range(len(event))]
    assert pieces == [b""] * (len(event) - 1) + [event]
    assert cutter.rest == b""


@given(st.lists(EVENT, max_size=30), st.integers(1, 3))
def test_parts_of_events_are_those_events_and_each_but_the_last_is_of_whole_ones(events, times):
    stream = b"".join(events) * times * 100
    parts = list(parts_of(stream))
    assert b"".join(parts) == stream
    assert [event for part in parts for event in events_in(part)] == list(events_in(stream))
    assert all(len(part) <= JUDGED_BYTES + 100 for part in parts)


@given(st.lists(st.sampled_from([WORD, b": a comment"]).map(lambda line: line + b"\n\n")))
def test_an_error_is_found_where_it_stands(before):
    sound = b"".join(before)
    assert before_error(sound) == (sound, None)
    found, verdict = before_error(sound + DEATH + b"\n\n" + MISTAKE + b"\n\n")
    assert (found, verdict.message, verdict.status) == (sound, "EngineCore died", 500)
    found, verdict = before_error(sound + MISTAKE + b"\n\n" + DEATH + b"\n\n")
    assert (found, verdict.message, verdict.is_failure) == (sound, "temperature", False)


STOP = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
COUNTED = b'data: {"choices": [], "usage": {"completion_tokens": 1}}\n\n'
ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def test_a_word_ends_the_opening_and_what_was_held_comes_with_it():
    opening = Opening()
    assert not opening.hear(b": ping\n\n" + ROLE)
    assert opening.hear(WORD + b"\n\n" + STOP)
    assert bytes(opening.held) == b": ping\n\n" + ROLE + WORD + b"\n\n" + STOP


@pytest.mark.parametrize(
    ("events", "verdict", "where_it_may_be_silent"),
    [
        (b"", NO_EVENTS, NO_EVENTS),
        (DONE, NO_EVENTS, NO_EVENTS),
        (ROLE + DONE, NO_EVENTS, NO_EVENTS),
        (ROLE + STOP + DONE, SILENT, None),
        (ROLE + STOP + COUNTED + DONE, None, None),
    ],
)
def test_a_stream_without_a_word_is_no_answer_unless_it_ended_and_was_counted_or_may_be_silent(
    events, verdict, where_it_may_be_silent
):
    opening = Opening()
    assert not opening.hear(events)
    assert opening.verdict(may_be_silent=False) == verdict
    assert opening.verdict(may_be_silent=True) == where_it_may_be_silent
