"""The values that go into the journal and come out of it, and texts in a shape that SQLite can erase. Pure.

Texts get whole pages of their own. secure_delete zeroes what is freed, but rows that move between pages when the tree
is balanced leave copies behind in the unused part of a page. Overflow pages never move and are zeroed whole when they
are freed. How much of a row stays on the tree's page is settled by the file format
(https://www.sqlite.org/fileformat2.html, section 1.6): of a payload of LOCAL + n * OVERFLOW bytes exactly LOCAL. Those
are zeros here, and the text is what follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Decided(Protocol):
    """What the journal must know of a decision to keep it."""

    @property
    def decision_id(self) -> str: ...

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision; `time` is in seconds since the epoch, `owner` the name of the key that asked; None without one.

    `messages` are the user's turns that routing read, newest last; None where texts are not kept.
    """

    time: float
    decision: Decided
    messages: Sequence[Mapping[str, str]] | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a caller thought of the answer to one decision; `score` is in [0, 1]."""

    decision_id: str
    score: float
    comment: str | None
    time: float


@dataclass(frozen=True, slots=True)
class Kept:
    """One decision as it was read back, with the feedback on it and the tokens that its answer stated, by kind."""

    time: float
    decision: Mapping[str, Any]
    messages: Sequence[Mapping[str, str]] | None
    score: float | None
    comment: str | None
    tokens: Mapping[str, int] | None

    def as_json(self) -> dict[str, Any]:
        """The decision, when it was made, what its answer took and what was thought of it; the prompt is no part."""
        feedback = None if self.score is None else {"score": self.score, "comment": self.comment}
        return {"time": self.time, "feedback": feedback, "tokens": self.tokens, **self.decision}


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept at most: so many decisions, none older than so many seconds."""

    rows: int
    seconds: float


PAGE_SIZE = 4096
OVERFLOW = PAGE_SIZE - 4  # a page less the number of the next one
LOCAL = (PAGE_SIZE - 12) * 32 // 255 - 23


def packed(text: str) -> bytes:
    """The value to store in the second of two columns, the first being the row's number."""
    body = text.encode()
    for pages in range(1, len(body) // OVERFLOW + 3):
        size = LOCAL + pages * OVERFLOW - _header_bytes(LOCAL + pages * OVERFLOW)
        if size >= LOCAL + len(body):
            return bytes(LOCAL) + body + bytes(size - LOCAL - len(body))
    raise AssertionError("one page more than the text fills is always enough")


def unpacked(value: bytes) -> str:
    """The text again; it has no zero bytes of its own, JSON writes them as escapes."""
    return value[LOCAL:].rstrip(b"\0").decode()


def _header_bytes(payload: int) -> int:
    """Of a row of (number, bytes): its own length, one byte for the number, the kind and length of the bytes."""
    kind = 2 * payload + 12
    return 2 + next(width for width in (1, 2, 3, 4, 5) if kind < 1 << 7 * width)
