"""A preset's answer says its own name in `model`, and is unchanged otherwise, however its bytes come."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coe_server.http.answers.own_name import Named
from tests.examples import examples
from tests.patience import PATIENCE_SECONDS


def named(text: bytes, *cuts: int) -> bytes:
    """The text under the name `thinker`, cut at these places."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    reader = Named("thinker")
    pieces = [reader.hear(text[one:other]) for one, other in pairwise(places)]
    return b"".join(pieces) + reader.rest


def test_the_name_stands_where_each_api_has_its_model() -> None:
    for told in (
        b'{"id":"1","model":"qwen3","choices":[]}',
        b'data: {"id":"1","model": "qwen3"}\n\ndata: {"model":"qwen3"}\n\ndata: [DONE]\n\n',
        b'event: a\ndata: {"type":"response.created","response":{"id":"r","model":"qwen3"}}\n\n',
        b'event: message_start\ndata: {"type":"message_start","message":{"model":"qwen3","content":[]}}\n\n',
    ):
        assert named(told) == told.replace(b"qwen3", b"thinker")


def test_what_users_call_a_model_is_not_touched() -> None:
    for told in (
        b'{"metadata":{"model":"qwen3"},"choices":[{"model":"qwen3"}],"text":"model","other":"qwen3"}',
        rb'{"content":"\"model\":\"qwen3\"","a\"model":"qwen3","tool":[{"input":{"model":"qwen3"}}]}',
        b'{"model":null,"response":[{"model":"qwen3"}],"x":"qwen3"}',
    ):
        assert named(told) == told


LONG = 'long \\ " ' * 60
texts = st.one_of(st.text(max_size=20), st.text('\\"ab:{}[]', max_size=20), st.just(LONG))
keys = st.sampled_from(["model", "response", "a", LONG])


def members(inner: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    """Objects; a model's name is short."""
    found = st.dictionaries(keys, inner, max_size=3)
    return found.map(lambda one: {**one, "model": "short"} if one.get("model") == LONG else one)


values = st.recursive(
    st.one_of(st.none(), st.integers(), texts),
    lambda inner: st.lists(inner, max_size=3) | members(inner),
    max_leaves=12,
)


@examples(150)
@given(members(values), st.lists(st.integers(0, 5000)))
def test_any_answer_in_any_pieces_differs_in_its_model_alone(answer: dict[str, object], cuts: list[int]) -> None:
    whole = json.dumps(answer).encode()
    expected = json.loads(whole)
    for place in (expected, expected.get("response"), expected.get("message")):
        if isinstance(place, dict) and isinstance(place.get("model"), str):
            place["model"] = "thinker"
    assert json.loads(named(whole, *cuts)) == expected
    assert named(whole, *range(len(whole))) == named(whole)


def test_a_long_string_is_read_once_however_many_quotes_it_has() -> None:
    program = """
from coe_server.http.answers.own_name import Named
for inside in (rb'\\"', rb'\\"key\\": ', rb'\\\\'):
    reader, piece = Named("m"), b'{"model":"q","text":"' + inside * 200_000
    assert reader.hear(piece) + reader.rest == piece.replace(b'"q"', b'"m"')
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_SECONDS)


def test_objects_that_are_opened_without_end_are_counted_not_kept() -> None:
    reader = Named("thinker")
    before = sys.getsizeof(vars(reader))
    for _ in range(100):
        reader.hear(b'{"a":[' * 10_000)
    assert sum(map(sys.getsizeof, vars(reader).values())) + before < 2000
    assert reader.hear(b"]}" * 1_000_000 + b'{"model":"q"}').endswith(b'{"model":"thinker"}')
