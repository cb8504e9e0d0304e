"""Log-probabilities are asked for and taken out again; what is left has the bytes of an answer without them."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.http.apis import APIS
from coe_server.http.bodies.body import read_body
from coe_server.http.logprobs import (
    LONGEST_BODY_BYTES,
    MOST_FOUND,
    TakenFromBody,
    TakenFromEvents,
    asking,
    without_logprobs,
)
from tests.patience import PATIENCE_SECONDS

CHAT, COMPLETIONS, RESPONSES, MESSAGES = APIS[:4]
HEAD = '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
# As vLLM 0.32 writes them.
ROLE = f'data: {HEAD}"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]}}\n\n'
USAGE = 'data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}\n\n'


def chunk(text: str, told: str, finish: str = "null") -> str:
    delta = json.dumps({"content": text}, separators=(",", ":"), ensure_ascii=False)
    return f'data: {HEAD}"delta":{delta},"logprobs":{told},"finish_reason":{finish}}}]}}\n\n'


def told_of(*tokens: tuple[str, float]) -> str:
    content = [
        {"token": text, "logprob": said, "bytes": list(text.encode()), "top_logprobs": []} for text, said in tokens
    ]
    return json.dumps({"content": content}, separators=(",", ":"), ensure_ascii=False)


WORDS = ["the", ' "logprobs":{"content":[', ' \\"logprobs\\": {"', "\\", "é", "\n"]
WITH = (
    ROLE + "".join(chunk(word, told_of((word, -0.5))) for word in WORDS) + chunk("", told_of(("</s>", -1.0)), '"stop"')
)
WITHOUT = ROLE + "".join(chunk(word, "null") for word in WORDS) + chunk("", "null", '"stop"')
END = USAGE + "data: [DONE]\n\n"


@given(st.lists(st.integers(1, len(WITH)), max_size=8))
def test_a_stream_has_the_bytes_of_one_without_log_probabilities_however_it_is_cut(cuts: list[int]) -> None:
    raw, taken, passed, at = (WITH + END).encode(), TakenFromEvents(kept=False), b"", 0
    for cut in [*sorted(cuts), len(raw)]:
        passed += taken.hear(raw[at:cut])
        at = cut
    assert passed + taken.end() == (WITHOUT + END).encode()
    assert taken.found == [-0.5] * len(WORDS) + [-1.0]


def test_a_chunk_that_is_only_sent_to_tell_log_probabilities_is_dropped() -> None:
    empty = f'data: {HEAD}"delta":{{}},"logprobs":{told_of(("<tool>", -0.1))},"finish_reason":null}}]}}\n\n'
    last = f'data: {HEAD}"delta":{{}},"logprobs":{told_of(("</s>", -0.2))},"finish_reason":"tool_calls"}}]}}\n\n'
    taken = TakenFromEvents(kept=False)
    assert taken.hear((ROLE + empty + last).encode()) == (ROLE + last.replace(told_of(("</s>", -0.2)), "null")).encode()
    assert taken.found == [-0.1, -0.2]


def test_a_chunk_that_tells_of_no_token_has_null_too() -> None:
    taken = TakenFromEvents(kept=False)
    assert taken.hear((chunk("a", told_of()) + END).encode()) == (chunk("a", "null") + END).encode()
    assert taken.found == []


def test_a_caller_that_asks_for_them_gets_the_bytes_as_they_are() -> None:
    for taken in (TakenFromEvents(kept=True), TakenFromBody(kept=True)):
        passed = taken.hear(WITH.encode()) + taken.end()
        assert passed == WITH.encode()
        assert taken.found[-1] == -1.0


BODY = (
    '{"choices":[{"index":0,"message":{"role":"assistant","content":"a \\"logprobs\\":{}"},"logprobs":%s,'
    '"finish_reason":"stop"}],"prompt_logprobs":null}'
)
LISTED = '{"text_offset":[0,1],"token_logprobs":[null,-0.25],"tokens":["a","b"],"top_logprobs":[null,{"b":-0.25}]}'


@pytest.mark.parametrize(("told", "found"), [(told_of(("a", -0.5), ("b", -2)), [-0.5, -2.0]), (LISTED, [-0.25])])
def test_a_body_has_null_where_they_were(told: str, found: list[float]) -> None:
    taken = TakenFromBody(kept=False)
    assert taken.hear((BODY % told).encode()) == b""
    assert taken.end() == (BODY % "null").encode()
    assert taken.found == found


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b'{"logprobs":null}',
        b'{"logprobs":{"content":[',
        b'"logprobs":{',
        b'{"a":"\\"logprobs\\":{}"}',
        b"[1]",
    ],
)
def test_what_has_none_is_unchanged(raw: bytes) -> None:
    assert without_logprobs(raw) == (raw, [])


@given(st.binary(max_size=200))
def test_any_bytes_that_do_not_mention_them_are_unchanged(raw: bytes) -> None:
    assert without_logprobs(raw) == (raw, [])


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ('{"token_logprobs":[NaN,-1.5]}', [-1.5]),
        ('{"token_logprobs":[Infinity,-Infinity,1e999]}', [math.inf, -math.inf, math.inf]),
        (f'{{"token_logprobs":[-1{"0" * 400},1{"0" * 400}]}}', [-math.inf, math.inf]),
        ('{"content":[{"logprob":NaN},{"logprob":"-1"},{"logprob":[]},{"logprob":true},{},7,{"logprob":-2}]}', [-2.0]),
    ],
)
def test_hostile_numbers_are_clamped_or_left_out(told: str, found: list[float]) -> None:
    assert without_logprobs(f'{{"logprobs":{told}}}'.encode()) == (b'{"logprobs":null}', found)


@pytest.mark.parametrize("kept", [True, False])
def test_an_answer_without_end_is_not_remembered_without_end(kept: bool) -> None:
    events, taken = TakenFromEvents(kept), (",-1" * 1000)[1:]
    for _ in range(MOST_FOUND // 1000 + 2):
        events.hear(
            f'data: {{"delta":{{}},"logprobs":{{"token_logprobs":[{taken}]}},"finish_reason":null}}\n\n'.encode()
        )
    assert len(events.found) == MOST_FOUND
    assert (
        len(without_logprobs(f'{{"logprobs":{{"token_logprobs":[{",".join([taken] * 70)}]}}}}'.encode())[1])
        == MOST_FOUND
    )


def test_a_chunk_is_searched_once_whatever_it_repeats() -> None:
    hear = """
        from coe_server.http.logprobs import TakenFromEvents
        event = b'data: {"logprobs":{"token_logprobs":[-1]},' + b'"delta":{},' * 90_000 + b'"finish_reason":"x"}\\n\\n'
        assert TakenFromEvents(kept=False).hear(event).endswith(b'"delta":{},"finish_reason":"x"}\\n\\n')
    """
    program = "\n".join(line.strip() for line in hear.splitlines())
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_SECONDS)


def test_a_very_long_body_is_passed_on_as_it_is() -> None:
    taken, piece = TakenFromBody(kept=False), b"x" * (LONGEST_BODY_BYTES // 2)
    passed = b"".join((*(taken.hear(piece) for _ in range(3)), taken.end()))
    assert passed == piece * 3
    assert taken.found == []


@pytest.mark.parametrize(
    ("api", "fields", "asked"),
    [
        (CHAT, {}, {"logprobs": b"true"}),
        (CHAT, {"logprobs": False, "tools": [], "tool_choice": "auto"}, {"logprobs": b"true"}),
        (CHAT, {"logprobs": True, "top_logprobs": 3}, {}),
        (CHAT, {"top_logprobs": 3}, None),
        (CHAT, {"tool_choice": "required"}, None),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}, None),
        (CHAT, {"response_format": {"type": "text"}}, {"logprobs": b"true"}),
        (CHAT, {"guided_choice": ["a"]}, None),
        (COMPLETIONS, {}, {"logprobs": b"1"}),
        (COMPLETIONS, {"logprobs": 0}, {}),
        (COMPLETIONS, {"echo": True}, None),
        (RESPONSES, {}, None),
        (MESSAGES, {}, None),
        (APIS[5], {}, None),
    ],
)
def test_what_an_engine_is_asked_for(api: object, fields: dict[str, object], asked: dict[str, bytes] | None) -> None:
    assert asking(api, read_body(json.dumps(fields).encode()), {}) == asked


def test_what_a_preset_sets_counts_as_the_callers_words() -> None:
    body = read_body(b"{}")
    assert asking(CHAT, body, {"logprobs": b"true"}) == {}
    assert asking(CHAT, body, {"response_format": b'{"type":"json_object"}'}) is None
    assert asking(CHAT, read_body(b'{"response_format":{"type":"json_object"}}'), {"response_format": None}) is not None
