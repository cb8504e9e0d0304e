"""Pure: how often an expert may fail before it is left alone, and for how long. Times come in as seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

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
