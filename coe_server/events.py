"""What happened, in order: a bounded log that readers can follow live and resume. Knows nothing of what it records."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, get_args

Kind = Literal["move", "switch", "decision", "failure"]


@dataclass(frozen=True, slots=True)
class Event:
    """`seq` counts from 1 without gaps; `time` is in seconds since the epoch."""

    seq: int
    time: float
    kind: Kind
    fields: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"seq": self.seq, "time": self.time, "kind": self.kind, **self.fields}


class EventLog:
    """Keeps the newest events of each kind, so that many decisions do not push out the moves.

    One writer's loop; any number of readers on the same loop.
    """

    def __init__(self, keep: int = 1000) -> None:
        self._events: dict[Kind, deque[Event]] = {kind: deque(maxlen=keep) for kind in get_args(Kind)}
        self._seq = 0
        self._news = asyncio.Event()
        self._closed = False
        self._observers: list[Callable[[Event], None]] = []

    def tell(self, observer: Callable[[Event], None]) -> None:
        """From now on `observer` is called with each event as it happens; it must not wait."""
        self._observers.append(observer)

    def record(self, kind: Kind, **fields: Any) -> None:
        self._seq += 1
        event = Event(self._seq, time.time(), kind, fields)
        self._events[kind].append(event)
        for observer in self._observers:
            observer(event)
        self._news.set()
        self._news = asyncio.Event()

    def close(self) -> None:
        """Nothing follows any more: readers get what there is and come to an end."""
        self._closed = True
        self._news.set()

    async def after(self, seq: int) -> AsyncIterator[Event]:
        """Every kept event after `seq`, then each new one as it happens, until the log is closed.

        A `seq` that is still to come is from another server's life: everything is told from the beginning.
        """
        seq = seq if seq <= self._seq else 0
        while True:
            news = self._news
            for event in self._newer_than(seq):
                seq = event.seq
                yield event
            if self._closed:
                return
            if self._seq <= seq:
                await news.wait()

    def _newer_than(self, seq: int) -> list[Event]:
        """In order. Looked for from the newest: a reader that follows must not pass all that is kept each time."""
        newer: list[Event] = []
        for events in self._events.values():
            newer += takewhile(lambda event: event.seq > seq, reversed(events))
        return sorted(newer, key=lambda event: event.seq)
