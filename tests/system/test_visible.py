from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.system.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("été 日本 שלום हिन्दी", "été 日本 שלום हिन्दी"),
        ("👩‍👧", "👩‍👧"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\r\nb\0\u2028", r"a\r\nb\x00\u2028"),
        ("\u202eabc \ud83d", r"\u202eabc \ud83d"),
    ],
)
def test_what_a_terminal_would_obey_is_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_written_to_a_terminal_on_one_line(text: str) -> None:
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert visible(shown) == shown
