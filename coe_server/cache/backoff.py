"""How long an expert gets no request after failures: one with a process here, and one that is answered elsewhere."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil

FAILURES_IN_A_ROW = 2  # without an answer in between
FAILURES_IN_THE_WINDOW = 5  # with answers in between: each restart costs the others a cold start's worth of machine
WINDOW_SECONDS = 600.0
SHORTEST_REST_SECONDS = 30.0
LONGEST_REST_SECONDS = 960.0
_MOST_DOUBLINGS = 10  # 2.0 ** 1024 is an error


@dataclass(slots=True)
class Restarts:
    """One expert's failures. After a rest it has one more try; each rest without an answer since is twice as long."""

    in_a_row: int = 0
    rests: int = 0  # since its last answer
    recent: deque[float] = field(default_factory=deque)

    def fail(self, now: float, hopeless: bool) -> float | None:
        """Count a failure; the seconds of rest it needs, None if it may start again at once.

        `hopeless`: trying again at once would end in the same way, as with an engine that does not start.
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
        self.rests += 1
        return min(SHORTEST_REST_SECONDS * 2.0 ** min(self.rests - 1, _MOST_DOUBLINGS), LONGEST_REST_SECONDS)

    def answer(self) -> None:
        """It gave a whole answer: what was before does not count as a row any more."""
        self.in_a_row = self.rests = 0

    def forgive(self) -> None:
        """A person wants it tried again."""
        self.in_a_row = self.rests = 0
        self.recent.clear()


REMOTE_FAILURES_IN_A_ROW = 3  # without an answer in between, where one alone says little of the next
SHORTEST_SECONDS = 1.0
LONGEST_SECONDS = 300.0  # unless its server asks for more with Retry-After


@dataclass(slots=True)
class Backoff:
    """One expert's. When the time is over, one request tries it; the others wait for what becomes of that one."""

    in_a_row: int = 0
    backoffs: int = 0  # since its last answer
    cause: str = ""  # of the last one, in a word or a status
    since: float | None = None  # None: it is not backing off
    until: float = 0.0
    is_tried: bool = False

    def fail(self, now: float, cause: str, at_once: bool, asked_seconds: float | None = None) -> float | None:
        """Count a failure; the seconds of the backoff that it begins, None if it begins none.

        `asked_seconds`: what the expert's server asked for. Those who were inside already when it began prolong it by
        that alone: ten requests that fail together are one failure.
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
        """It begins to answer a request that it was asked at that moment: the others may follow, for a whole answer
        may take long. If it breaks off, the next backoff is longer still."""
        if self._is_news(asked):
            self.since, self.is_tried = None, False

    def answer(self, asked: float) -> None:
        """It answered that request."""
        if self._is_news(asked):
            self.forgive()

    def _is_news(self, asked: float) -> bool:
        """From before a backoff an answer says nothing of it."""
        return self.since is None or asked >= self.since

    def forgive(self) -> None:
        """A person wants it tried again."""
        self.in_a_row = self.backoffs = 0
        self.since, self.is_tried = None, False

    def begin_try(self) -> bool:
        """The time is over, and a request is let in: True if it is the one that tries."""
        tries = self.since is not None
        self.is_tried = self.is_tried or tries
        return tries

    def end_try(self) -> None:
        """The request that tried it ended without saying anything of the expert: the next one tries."""
        self.is_tried = False

    def refusal(self, now: float) -> str | None:
        """Why no request is let in now; None if one is."""
        if self.since is None or (now >= self.until and not self.is_tried):
            return None
        if self.is_tried:
            return f"backing off: {self.cause}; one request tries it now"
        return f"backing off {ceil(self.until - now)} s: {self.cause}"

    def seconds_left(self, now: float) -> float:
        """Until a request may be let in; while one tries it, the time that the next backoff would take at least."""
        return SHORTEST_SECONDS if self.is_tried else max(0.0, self.until - now)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an expert is not to be had, and until when (in the cache's clock)."""

    reason: str
    until: float
