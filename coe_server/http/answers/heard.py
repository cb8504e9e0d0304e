"""The text of a chat answer, from the bytes that were sent. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

LONGEST_ANSWER_BYTES = 256 * 1024


class Heard:
    """The pieces of an answer, up to a limit."""

    def __init__(self) -> None:
        self._pieces = bytearray()
        self.is_whole = True

    def __call__(self, piece: bytes) -> None:
        if len(self._pieces) + len(piece) > LONGEST_ANSWER_BYTES:
            self.is_whole = False
        else:
            self._pieces += piece

    @property
    def text(self) -> str | None:
        """The text of a chat answer, streamed or not; None if there is none."""
        raw = bytes(self._pieces)
        lines = [line[5:].strip() for line in raw.splitlines() if line.startswith(b"data:")]
        return _text_of(lines or [raw]) if self.is_whole else None


def _text_of(parts: Sequence[bytes]) -> str | None:
    """The text in a body, or in the data of events."""
    found = []
    for part in parts:
        try:
            choice = json.loads(part)["choices"][0]
            said = (choice.get("delta") or choice.get("message") or {}).get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            continue  # the last event, or the tokens
        if isinstance(said, str):
            found.append(said)
    return "".join(found) or None
