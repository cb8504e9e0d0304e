"""What is left of a large question without its bytes is little, and all that is needed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import RequestError
from coe_server.http.apis import APIS
from coe_server.http.bodies.body import KEPT_CHARACTERS, LONGEST_OPTION_BYTES, parse_request
from coe_server.journal.journal import LONGEST_TEXT
from coe_server.routing.features import normalised
from coe_server.routing.tokens import TokenCount
from tests.examples import examples

CHAT = APIS[0]


def chat(*texts, **fields):
    messages = [{"role": "user", "content": text} for text in texts]
    return json.dumps({"messages": messages, **fields}, ensure_ascii=False).encode()


@examples(30)
@given(
    st.lists(st.text("aé🜁 \\\n", min_size=1), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["model", "coe", "x" * 100, "ü"]), st.text(), max_size=4),
    st.sampled_from([1, KEPT_CHARACTERS]),
)
def test_it_is_passed_on_and_routed_as_with_its_bytes(texts, fields, times):
    raw = chat(*(text * times for text in texts), **fields)
    whole = parse_request(raw, CHAT)
    bare = whole.without_bytes()
    assert bare.body.raw == b""
    again = bare.with_bytes(raw)
    assert b"".join(again.body.for_engine("expert")) == b"".join(whole.body.for_engine("expert"))
    for kept, turn in zip(again.conversation.turns, whole.conversation.turns, strict=True):
        assert normalised(kept.text).tobytes() == normalised(turn.text).tobytes()
    assert again.conversation.prompt == whole.conversation.prompt


def test_descriptions_of_tools_fill_the_context():
    described = [{"type": "function", "function": {"name": "f", "description": "what it is for " * 1000}}]
    bare, parsed = parse_request(chat("hello"), CHAT), parse_request(chat("hello", tools=described), CHAT)
    added = TokenCount.of(json.dumps(described))
    assert parsed.conversation.prompt == bare.conversation.prompt + TokenCount(added.least // 2, added.likely)
    assert parsed.without_bytes().conversation.prompt == parsed.conversation.prompt
    assert parse_request(chat("hello", tools=[]), CHAT).conversation.prompt == bare.conversation.prompt


def test_nothing_in_it_grows_with_the_body():
    key = "k" * 1_000_000
    bare = parse_request(
        chat("a " * 1_000_000, stream=True, metadata="x" * 1_000_000, **{key: 1}), CHAT
    ).without_bytes()
    assert dict(bare.body.fields) == {"stream": True}
    assert max(len(member.key) for member in bare.body.members) < 100
    text = bare.conversation.turns[0].text
    assert LONGEST_TEXT < len(text) == 2 * KEPT_CHARACTERS  # a log that keeps texts does not take it for whole


def test_an_option_that_is_a_book_is_refused():
    parsed = parse_request(chat("hello", coe={"session": "x" * LONGEST_OPTION_BYTES}), CHAT)
    with pytest.raises(RequestError, match="coe is longer than 65536 bytes") as caught:
        parsed.without_bytes()
    assert caught.value.param == "coe"


def test_without_an_api_the_fields_tell_it():
    assert parse_request(b'{"prompt": "hello"}', None).api.endpoint == "completions"
