"""The values that go into the journal and come out of it. Knows nothing of files, threads or routing's own types."""

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
