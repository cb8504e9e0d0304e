"""The text of an answer that was heard, from whatever an engine sends."""

from __future__ import annotations

import pytest

from coe_server.http.answers.heard import Heard


def heard(raw: bytes) -> str | None:
    found = Heard()
    found(raw)
    return found.text


def test_the_text_of_a_body_and_of_events_is_found() -> None:
    assert heard(b'{"choices":[{"message":{"content":"yes"}}]}') == "yes"
    assert (
        heard(b'data: {"choices":[{"delta":{"content":"y"}}]}\n\ndata: {"choices":[{"delta":{"content":"es"}}]}\n\n')
        == "yes"
    )


@pytest.mark.parametrize("raw", [b"", b"[1]", b"\xff", b"[" * 100_000, b"9" * 5000, b'{"choices":[{"message":7}]}'])
def test_what_is_no_answer_has_no_text(raw: bytes) -> None:
    assert heard(raw) is None
