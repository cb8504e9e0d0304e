"""What endpoints send is read without trust."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_training.collect.endpoint import Completion, complaint, read_completion

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "usage", "error"]), inner, max_size=3)
    ),
)


def body(content: Any, **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], **more}).encode()


def test_text_tokens_and_finish_reason_are_read() -> None:
    assert read_completion(body("yes", usage={"completion_tokens": 3})) == Completion("yes", 3, "stop")


@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": -1}, {"completion_tokens": True}, [3]])
def test_tokens_that_are_not_counted_are_unknown_not_zero(usage: object) -> None:
    assert read_completion(body("yes", usage=usage)) == Completion("yes", None, "stop")


@pytest.mark.parametrize("value", ["NaN", "1", "1" + "0" * 400, "-1" + "0" * 400, '"x"', "null", "{}", "[]"])
def test_what_is_no_log_probability_is_as_if_none_were_told(value: str) -> None:
    content = f'[{{"logprob":-1.5}},{{"logprob":{value}}}]'
    raw = body("yes").replace(b'"finish_reason"', f'"logprobs":{{"content":{content}}},"finish_reason"'.encode())
    assert read_completion(raw) == Completion("yes", None, "stop")


@pytest.mark.parametrize("reason", ["error", "abort", "network_error", "ERROR"])
def test_half_an_answer_is_not_scored(reason: str) -> None:
    half = {"message": {"content": "half"}, "finish_reason": reason}
    whole = {"message": {"content": "yes"}, "finish_reason": "stop"}
    assert read_completion(json.dumps({"choices": [half]}).encode()) is None
    assert read_completion(json.dumps({"choices": [half, whole]}).encode()) == Completion("yes", None, "stop")


def test_of_an_answer_in_parts_the_texts_are_read_and_not_the_thoughts() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "perhaps no"}]}
    parts = [thought, {"type": "text", "text": "ye"}, {"type": "text", "text": "s"}]
    assert read_completion(body(parts)) == Completion("yes", None, "stop")
    assert read_completion(body([thought])) == Completion("", None, "stop")
    assert read_completion(body([{"type": "text", "text": 7}])) is None


def test_an_answer_without_content_is_empty() -> None:
    assert read_completion(body(None)) == Completion("", None, "stop")


@given(st.binary(max_size=50) | anything.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_an_answer_or_none_and_has_a_complaint(raw: bytes) -> None:
    completion = read_completion(raw)
    assert completion is None or isinstance(completion.text, str)
    assert "\n" not in complaint(raw)
    assert len(complaint(raw)) <= 300


def test_a_complaint_is_the_sentence_in_an_error_or_the_body() -> None:
    assert complaint(b'{"error": {"message": "too\\nlong"}}') == "too long"
    assert complaint(b"<html>bad gateway") == "<html>bad gateway"
