"""What is read of a JSON object whose rest is not there, and whether a long body is an error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.upstream.cut_json import last_member, members_at_beginning
from coe_server.upstream.verdict import LOOKED_AT_BYTES, judge_beginning, judge_end

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


@given(OBJECTS, st.integers(0, 200))
def test_all_members_before_the_cut_are_read(value, length):
    text = json.dumps(value)
    found = members_at_beginning(text[:length])
    assert list(found) == list(value)[: len(found)]
    whole = list(found)[:-1] if length < len(text) else list(value)
    assert {name: found[name] for name in whole} == {name: value[name] for name in whole}


def test_an_object_and_a_text_that_are_cut_are_read_so_far():
    assert members_at_beginning('{"a": 1, "error": {"code": 429, "message": "lim') == {
        "a": 1,
        "error": {"code": 429, "message": "lim"},
    }
    assert members_at_beginning('{"choices": [{"a": 1') == {}


@given(st.text(max_size=40))
def test_any_text_is_read(text):
    members_at_beginning(text)
    last_member(text.encode(), b'"error"')


LONG = "x" * 4 * LOOKED_AT_BYTES
LIMIT = {"code": 429, "message": "no"}
ERRORS = {
    "beside a long request": {"object": "response", "status": "failed", "error": LIMIT, "instructions": LONG},
    "with a long text": {"id": "1", "error": {"code": 429, "message": LONG}},
    "first, with a long text": {"error": {"code": 429, "message": LONG}},
    "a text with a code before it": {"code": 429, "error": LONG},
    "the whole body": {"object": "error", "code": 429, "message": LONG},
    "in a list": [{"error": {"code": 429, "message": LONG}}],
    "at the end": {"note": LONG, "error": LIMIT},
}


def judged(value):
    raw = json.dumps(value).encode()
    beginning = judge_beginning(raw[:LOOKED_AT_BYTES])
    return judge_end(raw[-LOOKED_AT_BYTES:]) if beginning.cause is None else beginning


@pytest.mark.parametrize("value", ERRORS.values(), ids=ERRORS)
def test_an_error_in_a_long_body_has_its_own_code(value):
    assert judged(value).status == 429


CHOICES = [{"message": {"content": '{"error": {"code": 429}}' + LONG}, "finish_reason": "stop"}]


@pytest.mark.parametrize("error", [None, {}, False, "", []], ids=str)
def test_no_error_before_a_long_answer_is_none(error):
    assert judged({"error": error, "choices": CHOICES}).cause is None
