"""JSON of an answer is read as json reads it, unless it is too deep or of too many parts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.upstream.complaint import MOST_NESTED, MOST_PARTS, TooComplex, is_complex, json_value

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='a"\\[]{}é'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='"[{\\'), inner, max_size=4),
    max_leaves=200,
)


@given(ANY, st.integers(0, 95), st.booleans())
def test_any_other_json_is_read_as_it_is(value, levels, ascii_only):
    for _ in range(levels if isinstance(value, str) else 0):
        value = [value]
    assert json_value(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(("opening", "levels"), [(b"[", 1), (b'{"a":', 1), (b'[{"[":', 2)])
def test_depth_is_bounded(opening, levels):
    assert not is_complex(opening * (MOST_NESTED // levels))
    assert is_complex(opening * (MOST_NESTED // levels + 1))
    with pytest.raises(TooComplex, match="nested more than 100 levels deep"):
        json_value(opening * 1_000_000)


def test_brackets_in_texts_are_none():
    text = '[{"\\' * 50_000
    assert json_value(json.dumps({"a": [text]}).encode()) == {"a": [text]}
    assert not is_complex(b'"' + b"[" * 1_000)


def test_the_number_of_parts_is_bounded():
    assert json_value(b"[" + b"{}," * (MOST_PARTS - 2) + b"[]]")[-1] == []
    with pytest.raises(TooComplex):
        json_value(b"[" + b"{}," * MOST_PARTS + b"[]]")


@given(st.binary() | st.text(alphabet='[]{}"\\').map(str.encode))
def test_bytes_of_any_kind_are_read_or_refused_as_json_reads_them(data):
    outcomes = []
    for read in (json.loads, json_value):
        try:
            outcomes.append(repr(read(data)))
        except ValueError:
            outcomes.append("refused")
    assert outcomes[0] == outcomes[1]
