"""The body is read once and passed on with every byte but two members untouched."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import RequestError
from coe_server.http.body import LARGE_BYTES, MOST_MARKS, read_body
from tests.http.server import running_server
from tests.http.test_api import simulated

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["model", "coe", "messages", "x"]) | st.text()


@given(st.lists(st.tuples(keys, json_values), max_size=6), st.booleans(), st.sampled_from(["", " ", "\n\t "]))
def test_only_model_and_coe_change(members, ascii_only, space):
    def text(pairs):
        inner = f"{space},{space}".join(
            f"{json.dumps(k, ensure_ascii=ascii_only)}{space}:{space}{json.dumps(v, ensure_ascii=ascii_only)}"
            for k, v in pairs
        )
        return f"{space}{{{space}{inner}{space}}}{space}"

    raw = text(members).encode("utf-8", "surrogatepass")
    try:
        body = read_body(raw)
    except RequestError:  # lone surrogates are not UTF-8
        raw.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")
        with pytest.raises(UnicodeDecodeError):
            raw.decode()
        return
    assert dict(body.fields) == dict(members)
    sent = json.loads(b"".join(body.for_engine("expert")))
    expected = {k: v for k, v in dict(members).items() if k != "coe"} | {"model": "expert"}
    assert sent == expected
    if not any(k in {"model", "coe"} for k, _ in members):
        assert raw.decode().strip("{} \n\t") in b"".join(body.for_engine("expert")).decode()


def test_numbers_and_escapes_keep_their_spelling():
    raw = b'{"a": 1.50e+3, "model":"auto", "b":"\\u00e9\\/", "coe": {"allow": ["x"]}, "c": 10000000000000000000001}'
    assert (
        b"".join(read_body(raw).for_engine("math"))
        == b'{"a": 1.50e+3, "model":"math", "b":"\\u00e9\\/", "c": 10000000000000000000001}'
    )


@pytest.mark.parametrize("raw", [b'{"coe": 1}', b'{"coe": 1, "coe": 2}', b'{ "coe":1 , "model":2 , "coe":3 }'])
def test_removing_coe_leaves_valid_json_wherever_it_stands(raw):
    assert json.loads(b"".join(read_body(raw).for_engine("m"))) == {"model": "m"}


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "must be a JSON object"),
        (b"[1]", "must be a JSON object"),
        (b'{"a": 1', "not valid JSON: Expecting ','"),
        (b'{"a" 1}', "Expecting ':'"),
        (b"{a: 1}", "Expecting '\"'"),
        (b'{"a": 1,}', "Expecting '\"'"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (gzip.compress(b"{}", mtime=0), "is compressed (gzip"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_broken_body_is_refused_with_a_sentence(raw, sentence):
    with pytest.raises(RequestError, match=sentence.replace("(", r"\(")) as caught:
        read_body(raw)
    assert caught.value.status == 400


def test_a_large_body_of_very_many_values_is_refused_before_it_is_parsed():
    many = b'{"metadata": [' + b"[]," * MOST_MARKS + b"[]]}"
    with pytest.raises(RequestError, match="more than 500,000 values"):
        read_body(many)
    text = b'{"a": "' + b"word " * MOST_MARKS + b'"}'
    assert b"".join(read_body(text).for_engine("m")) == text[:-1] + b', "model": "m"}'


@pytest.mark.parametrize("word", ["word", "wörd"])
def test_a_large_body_is_routed_and_passed_on_like_any_other(word):
    with running_server({"a": simulated("a")}, max_body_bytes=1 << 20) as server:
        question = f"{word} " * (LARGE_BYTES // 4)
        status, _, body = server.chat(model="a", messages=[{"role": "user", "content": question}], max_tokens=5)
        assert status == 200
        assert body["choices"][0]["message"]["content"] == f"a answers: {word} {word} {word}"
        status, _, raw = server.ask("POST", "/v1/chat/completions", b'{"a": "' + b"x" * LARGE_BYTES + b'\xff"}')
        assert status == 400
        assert "not UTF-8" in json.loads(raw)["error"]["message"]
