"""Values of the journal, and a text encoding that SQLite can erase completely. Pure.

Texts are stored on overflow pages only. secure_delete zeroes freed space, but rows that move when the B-tree is
balanced leave copies in unused parts of pages. Overflow pages never move and are zeroed when freed. By the file
format (https://www.sqlite.org/fileformat2.html, section 1.6) a payload of LOCAL + n * OVERFLOW bytes keeps exactly
LOCAL bytes on the B-tree page. These bytes are zeros here; the text follows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Decided(Protocol):
    """The fields of a routing decision that the journal stores."""

    @property
    def decision_id(self) -> str: ...

    def as_json(self) -> dict[str, Any]:
        """The whole decision as plain values."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision. `time`: seconds since the epoch. `owner`: name of the API key; None without one.

    `messages`: the user's messages that routing read, newest last; None if texts are not kept.
    """

    time: float
    decision: Decided
    messages: Sequence[Mapping[str, str]] | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """A client's rating of the answer to one decision; `score` is in [0, 1], on the scale of `source`."""

    decision_id: str
    score: float
    comment: str | None
    time: float
    source: str = "score"


@dataclass(frozen=True, slots=True)
class Compared:
    """Scores of two answers to one decision's prompt: its own, and that of `expert`; with what was expected of both
    before anything was learned."""

    decision_id: str
    expert: str
    own_score: float
    score: float
    own_expected: float
    expected: float


@dataclass(frozen=True, slots=True)
class Kept:
    """One decision read back, with its feedback and the token counts that its answer reported, by kind."""

    time: float
    decision: Mapping[str, Any]
    messages: Sequence[Mapping[str, str]] | None
    score: float | None
    comment: str | None
    tokens: Mapping[str, int] | None
    ratings: Mapping[str, float] = field(default_factory=dict)  # by source; `score` is the last of them
    compared: Mapping[str, Any] | None = None  # expert, score, own_score
    owner: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The decision, its time, token counts and feedback; without the prompt."""
        feedback = None if self.score is None else {"score": self.score, "comment": self.comment}
        return {"time": self.time, "feedback": feedback, "tokens": self.tokens, **self.decision}


@dataclass(frozen=True, slots=True)
class Retention:
    """Limits of the log: the number of decisions, and their age in seconds."""

    rows: int
    seconds: float


PAGE_SIZE = 4096
OVERFLOW = PAGE_SIZE - 4  # a page less the 4-byte number of the next one
LOCAL = (PAGE_SIZE - 12) * 32 // 255 - 23


def packed(text: str) -> bytes:
    """The BLOB for a text, to be stored in a row of (number, BLOB)."""
    body = text.encode()
    for pages in range(1, len(body) // OVERFLOW + 3):
        size = LOCAL + pages * OVERFLOW - _header_bytes(LOCAL + pages * OVERFLOW)
        if size >= LOCAL + len(body):
            return bytes(LOCAL) + body + bytes(size - LOCAL - len(body))
    raise AssertionError("one page more than the text needs is always enough")


def unpacked(value: bytes) -> str:
    """The text of such a BLOB. The text, being JSON, contains no zero bytes."""
    return value[LOCAL:].rstrip(b"\0").decode()


def _header_bytes(payload: int) -> int:
    """Bytes of the record header of a row (number, BLOB): header length, type of the number, type of the BLOB."""
    kind = 2 * payload + 12
    return 2 + next(width for width in (1, 2, 3, 4, 5) if kind < 1 << 7 * width)
