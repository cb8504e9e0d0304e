"""The body is read once and passed on with every byte but two members untouched."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import RequestError
from coe_server.http.bodies.body import LARGE_BYTES, MOST_MARKS, read_body
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


@pytest.mark.parametrize(
    "value",
    [
        b'"x\\ud83d y\\udc00"',  # halves of surrogate pairs, as JavaScript writes a text that was cut within an emoji
        b'"\\ud83d\\ude00 \\u0000 \x7f"',
        b"-0",
        b"-0.0",
        b"1e999",
        b"-1E+99999999999999999999",
        b"1e-999",
        b"18446744073709551617",
        b"9" * 4300,
        b"0." + b"1" * 5000,
        b'{"x": 1, "x": 2, "model": "b", "coe": 3}',
        b"[" * 500 + b"]" * 500,
        b"[ 1 ,\n\t2\r]",
    ],
    ids=lambda value: value[:20].decode(),
)
def test_values_that_readers_of_json_disagree_on_are_passed_on_byte_for_byte(value):
    for member in (b'"metadata" : %b' % value, b'"a":0, "a" :%b' % value, b'"messages": [%b]' % value):
        for rest in (b"", b', "y": "\xc3\xa9"'):
            raw = b'{ %b%b, "model": "m"}\n' % (member, rest)
            assert b"".join(read_body(raw).for_engine("m")) == raw


def test_the_last_of_several_members_of_one_name_counts_and_each_model_is_replaced():
    body = read_body(b'{"model": "a", "x": 1, "model": "b", "coe": {}, "x": 2, "\\u006dodel" :null}')
    assert dict(body.fields) == {"model": None, "x": 2, "coe": {}}
    assert b"".join(body.for_engine("m")) == b'{"model": "m", "x": 1, "model": "m", "x": 2, "\\u006dodel" :"m"}'


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
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\n"}', "Invalid control character"),
        (b'{"a": 01}', "Expecting ','"),
        (b'{"a": 1}\x0c', "Extra data"),
        (b"{} {}", "Extra data"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (gzip.compress(b"{}", mtime=0), "is compressed; send"),
        (b"\xef\xbb\xbf", "must be a JSON object"),
        (b'\xef\xbb\xbf{"a": "\xff"}', "not UTF-8"),
        (b"\xff\xfe{\0}\0\0", "not UTF-16"),
        ('{"a": 1}x'.encode("utf-16"), "Extra data"),
        (b"\0\0\0{\0\x11\0\0", "not UTF-32-BE"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' + b'{"a":' * 100_000, "nested too deeply"),
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


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["as it is", "with a mark"])
def test_a_body_in_another_encoding_of_unicode_is_passed_on_as_utf_8_without_a_mark(encoding, mark):
    text = '{ "a": 1.50e+3,"model":"auto", "ü":"\\u00e9 é 🜁", "coe": {"allow": ["x"]} }'
    expected = text.replace('"auto"', '"math"').partition(', "coe"')[0] + " }"
    named_order_only = encoding.endswith(("le", "be"))
    raw = ((mark if named_order_only else "") + text).encode(encoding)
    body = read_body(raw)
    assert b"".join(body.for_engine("math")) == expected.encode()
    assert body.fields["ü"] == "é é 🜁"


@given(st.dictionaries(st.text(), json_values, max_size=3), st.sampled_from(ENCODINGS))
def test_what_json_reads_in_any_encoding_is_read(fields, encoding):
    raw = json.dumps(fields, ensure_ascii=False).encode(encoding, "surrogatepass")
    assert json.loads(b"".join(read_body(raw).for_engine("m"))) == fields | {"model": "m"}
    assert dict(read_body(raw).fields) == fields


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-le"])
def test_half_a_surrogate_in_utf_16_or_utf_32_becomes_an_escape(encoding):
    body = read_body('{"a": "x\ud800y\udfff", "b": "é"}'.encode(encoding, "surrogatepass"))
    assert body.fields["a"] == "x\ud800y\udfff"
    assert b"".join(body.for_engine("m")) == '{"a": "x\\ud800y\\udfff", "b": "é", "model": "m"}'.encode()


def test_a_body_in_plain_utf_8_is_not_copied():
    raw = '{"a": "é"}'.encode()
    assert read_body(raw).raw is raw


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
@pytest.mark.parametrize("times", [1, LARGE_BYTES // 4], ids=["small", "large"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/route"])
def test_a_body_of_any_size_in_another_encoding_is_answered(encoding, times, path):
    with running_server({"a": simulated("a")}, max_body_bytes=1 << 20) as server:
        fields = {"model": "a", "messages": [{"role": "user", "content": "wörd " * times}], "max_tokens": 5, "x": "é"}
        raw = json.dumps(fields, ensure_ascii=False).encode(encoding)
        status, _, answer = server.ask("POST", path, raw)
        assert status == 200, answer
        assert path == "/v1/route" or "wörd" in json.dumps(json.loads(answer), ensure_ascii=False)


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
