"""Events cut out of chunks: whole, byte for byte, and told apart from failures, however the network cuts them."""

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


def test_a_comment_opens_and_a_word_does_not():
    assert is_opening(b": ping\n\n")
    assert is_opening(b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n')
    assert not is_opening(WORD + b"\n\n")
    assert not is_opening(b"data: [DONE]\n\n")
