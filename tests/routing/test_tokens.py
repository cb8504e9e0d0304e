"""The interval of tokens that a text may take, beside what real tokenizers took."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.tokens import NOTHING, TokenCount

TEXTS = st.text(st.sampled_from("abzZ059 .,=-\t\n\r_é中🜁─\ud800")) | st.text()
ROWS = [{"name": name, "city": "paris", "active": True, "tags": ["red", "blue"]} for name in ("alice", "bob")] * 200
SLACK = 5  # where two texts meet, a word, a line and a sign may become one; and both estimates are rounded

# The fewest, the mean and the most tokens that seven tokenizers took of each text, of 32 to 200 thousand tokens.
MEASURED = {
    "indented JSON": (json.dumps({"data": {"items": ROWS}}, indent=4), 16_016, 16_966, 22_821),
    "a table": ("\n".join(f"| {row['name']:<30} | {'paris':<30} | {'yes':<20} |" for row in ROWS), 4_000, 4_516, 6_199),
    "deep code": ("\n".join(f"{'':16}if value.alice is None:\n{'':20}return None" for _ in ROWS), 4_400, 4_939, 6_398),
    "prose": ("The quick brown fox jumps over the lazy dog and then it runs away. " * 300, 4_501, 4_582, 5_101),
    "Chinese": ("今天天气很好我们一起去公园散步吧" * 200, 1_600, 2_615, 4_000),
    "German": ("Die Rechtsschutzversicherungsgesellschaften beantragen eine Begrenzung. " * 200, 2_801, 3_786, 4_601),
    "Russian": ("Правительство Российской Федерации утвердило государственную программу. " * 100, 1_101, 1_811, 3_501),
    "a rule": ("\n".join("|" + "-" * 40 + "|" + "-" * 40 + "|" for _ in range(400)), 2_399, 2_882, 3_999),
}


@pytest.mark.parametrize("kind", MEASURED)
def test_it_holds_what_tokenizers_take_of_this_kind_of_text(kind: str) -> None:
    text, fewest, mean, most = MEASURED[kind]
    count = TokenCount.of(text)
    assert count.least <= fewest
    assert mean / 2 <= count.likely <= 2 * mean
    assert count.likely <= 1.25 * most


@given(TEXTS)
def test_the_least_is_never_more_than_what_is_likely(text: str) -> None:
    count = TokenCount.of(text)
    assert 0 <= count.least <= count.likely


@given(TEXTS, TEXTS, TEXTS)
def test_a_part_never_takes_more_than_the_whole(before: str, text: str, after: str) -> None:
    part, whole = TokenCount.of(text), TokenCount.of(before + text + after)
    assert part.least <= whole.least
    assert part.likely <= whole.likely


@given(TEXTS, TEXTS)
def test_two_texts_take_what_each_takes(one: str, other: str) -> None:
    together, apart = TokenCount.of(one + other), TokenCount.of(one) + TokenCount.of(other)
    assert abs(together.least - apart.least) <= SLACK
    assert abs(together.likely - apart.likely) <= SLACK


@given(TEXTS, st.integers(1, 200))
def test_spaces_and_repeated_signs_cost_nothing_more(text: str, times: int) -> None:
    for filling in (" ", "=", "─"):
        assert TokenCount.of(text + filling) == TokenCount.of(text + filling * times)


@pytest.mark.parametrize("unit", ["word ", "é, ", "ab=\n", "中"])
def test_a_long_text_counts_as_its_pieces(unit: str) -> None:
    few, many = TokenCount.of(unit * 1_000), TokenCount.of(unit * 200_000)
    assert abs(many.least - 200 * few.least) <= 200
    assert abs(many.likely - 200 * few.likely) <= 200


def test_where_a_long_text_is_cut_changes_nothing() -> None:
    words = "letters, 123 - " * 10_000
    counts = {TokenCount.of(" " * shift + words) for shift in range(20)}
    assert counts == {TokenCount.of(words)}


def test_no_text_takes_no_tokens() -> None:
    assert TokenCount.of("") == NOTHING == TokenCount(0, 0)
    assert TokenCount(1, 2) + TokenCount(10, 20) == TokenCount(11, 22)
