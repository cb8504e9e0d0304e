"""Pure: whose turn on the device is it. No clock, no I/O; times come in as seconds.

Requests for an expert on the device go on while nobody is overdue: collating amortises switches. A switch comes when
the waiting is worth its measured cost, or when somebody is overdue. Overdue experts go in order of deadline.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Queue:
    """The requests that wait for one expert which is not on the device."""

    expert: str
    arrivals: tuple[float, ...]  # seconds, oldest first; never empty
    switch_seconds: float  # measured cost of bringing the expert to the device

    def waited(self, now: float) -> float:
        """Seconds of waiting so far, summed over the queue."""
        return sum(now - arrival for arrival in self.arrivals)


@dataclass(frozen=True, slots=True)
class Turn:
    """An expert that should come to the device.

    A `pressing` turn may make busy experts drain. Nobody behind an `overdue` turn may take the room it waits for.
    """

    expert: str
    pressing: bool
    overdue: bool = False


def turns(queues: Iterable[Queue], now: float, max_wait_seconds: float) -> tuple[Turn, ...]:
    """Who should come next, first one first: overdue by deadline, then by waiting per second of switch cost."""

    def overdue(queue: Queue) -> bool:
        return now - queue.arrivals[0] >= max_wait_seconds

    def urgency(queue: Queue) -> tuple[bool, float]:
        if overdue(queue):
            return (False, queue.arrivals[0])
        return (True, -queue.waited(now) / max(queue.switch_seconds, _INSTANT))

    return tuple(
        Turn(queue.expert, overdue(queue) or queue.waited(now) >= queue.switch_seconds, overdue(queue))
        for queue in sorted(queues, key=urgency)
    )


def seconds_until_pressing(queues: Iterable[Queue], now: float, max_wait_seconds: float) -> float | None:
    """Seconds until the next queue becomes pressing if nothing else happens; None if none is on its way there."""
    pending = [
        min(
            max_wait_seconds - (now - queue.arrivals[0]),
            (queue.switch_seconds - queue.waited(now)) / len(queue.arrivals),
        )
        for queue in queues
    ]
    return min((seconds for seconds in pending if seconds > 0), default=None)


_INSTANT = 1e-6  # seconds; keeps the ratio finite for an expert that costs nothing to bring
