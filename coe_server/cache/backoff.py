"""Backoff after failures: of an expert with an engine process here, and of a remote expert."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil

FAILURES_IN_A_ROW = 2  # without a successful answer in between
FAILURES_IN_THE_WINDOW = 5  # with answers in between: each restart costs other experts the time of a cold start
WINDOW_SECONDS = 600.0
SHORTEST_BACKOFF_SECONDS = 30.0
LONGEST_BACKOFF_SECONDS = 960.0
_MOST_DOUBLINGS = 10  # 2.0 ** 1024 is an error


@dataclass(slots=True)
class Restarts:
    """One expert's failures.

    After a backoff it has one more try; without an answer the next backoff is twice as long.
    """

    in_a_row: int = 0
    backoffs: int = 0  # since its last answer
    recent: deque[float] = field(default_factory=deque)

    def fail(self, now: float, hopeless: bool) -> float | None:
        """Count a failure. Returns the backoff in seconds; None if the expert may start again at once.

        `hopeless`: an immediate retry would fail in the same way, as with an engine that does not start.
        """
        self.in_a_row += 1
        self.recent.append(now)
        while now - self.recent[0] > WINDOW_SECONDS:
            self.recent.popleft()
        often = len(self.recent) >= FAILURES_IN_THE_WINDOW
        if not (hopeless or often or self.in_a_row >= FAILURES_IN_A_ROW):
            return None
        if often:
            self.recent.clear()
        self.backoffs += 1
        return min(SHORTEST_BACKOFF_SECONDS * 2.0 ** min(self.backoffs - 1, _MOST_DOUBLINGS), LONGEST_BACKOFF_SECONDS)

    def answer(self) -> None:
        """Count a complete answer: the row of failures ends."""
        self.in_a_row = self.backoffs = 0

    def forgive(self) -> None:
        """Forget all failures, at an operator's request."""
        self.in_a_row = self.backoffs = 0
        self.recent.clear()


REMOTE_FAILURES_IN_A_ROW = 3  # without a successful answer in between; a single failure predicts little
SHORTEST_SECONDS = 1.0
LONGEST_SECONDS = 300.0  # unless its server asks for more with Retry-After


@dataclass(slots=True)
class Backoff:
    """A remote expert's backoff. When it ends, one request tries the expert; others wait for its result."""

    in_a_row: int = 0
    backoffs: int = 0  # since its last answer
    cause: str = ""  # of the last backoff: a word or a status
    since: float | None = None  # None: no backoff
    until: float = 0.0
    is_tried: bool = False

    def fail(self, now: float, cause: str, at_once: bool, asked_seconds: float | None = None) -> float | None:
        """Count a failure. Returns the backoff in seconds; None if none begins.

        `asked_seconds`: the server's Retry-After. Requests in flight when the backoff began prolong it by that value
        only: ten requests that fail together count as one failure.
        """
        self.in_a_row += 1
        if self.since is not None and not self.is_tried:
            self.until = max(self.until, now + (asked_seconds or 0.0))
            return None
        if not at_once and self.in_a_row < REMOTE_FAILURES_IN_A_ROW:
            return None
        grown = min(SHORTEST_SECONDS * 2.0 ** min(self.backoffs, _MOST_DOUBLINGS), LONGEST_SECONDS)
        seconds = max(asked_seconds, SHORTEST_SECONDS) if asked_seconds is not None else grown
        self.backoffs += 1
        self.cause, self.since, self.until, self.is_tried = cause, now, now + seconds, False
        return seconds

    def speak(self, asked: float) -> None:
        """Note that the answer to a request from time `asked` begins: it ends the backoff.

        A whole answer may take long, so other requests may follow now. If it breaks off, the next backoff is longer.
        """
        if self._is_news(asked):
            self.since, self.is_tried = None, False

    def answer(self, asked: float) -> None:
        """A request was answered completely."""
        if self._is_news(asked):
            self.forgive()

    def _is_news(self, asked: float) -> bool:
        """False if the request began before the backoff: its answer says nothing about the expert now."""
        return self.since is None or asked >= self.since

    def forgive(self) -> None:
        """End the backoff and forget all failures."""
        self.in_a_row = self.backoffs = 0
        self.since, self.is_tried = None, False

    def begin_try(self) -> bool:
        """Admit a request after the backoff. Returns True if it is the one that tries the expert."""
        tries = self.since is not None
        self.is_tried = self.is_tried or tries
        return tries

    def end_try(self) -> None:
        """The trying request ended without a result: the next request tries the expert."""
        self.is_tried = False

    def refusal(self, now: float) -> str | None:
        """Why no request is admitted now; None if one is."""
        if self.since is None or (now >= self.until and not self.is_tried):
            return None
        if self.is_tried:
            return f"backing off: {self.cause}; one request tries it now"
        return f"backing off {ceil(self.until - now)} s: {self.cause}"

    def seconds_left(self, now: float) -> float:
        """Seconds until a request may be admitted; while one tries the expert, at least the next backoff's length."""
        return SHORTEST_SECONDS if self.is_tried else max(0.0, self.until - now)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an expert is unavailable, and until when (in the cache's clock)."""

    reason: str
    until: float
