"""A bounded log of events in order, which readers can follow live and resume. Does not interpret the events."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, get_args

Kind = Literal["move", "switch", "decision", "failure", "expert"]


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
    """Keeps the newest events of each kind, so that many decisions do not displace the moves.

    Writers and readers run on one event loop.
    """

    def __init__(self, keep: int = 1000) -> None:
        self._events: dict[Kind, deque[Event]] = {kind: deque(maxlen=keep) for kind in get_args(Kind)}
        self._seq = 0
        self._news = asyncio.Event()
        self._closed = False
        self._observers: list[Callable[[Event], None]] = []

    def subscribe(self, observer: Callable[[Event], None]) -> None:
        """Call `observer` with each new event; it must not block."""
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
        """End the log: readers get the remaining events, then stop."""
        self._closed = True
        self._news.set()

    async def after(self, seq: int) -> AsyncIterator[Event]:
        """Every kept event after `seq`, then each new one, until the log is closed.

        A `seq` beyond the last event comes from an earlier server: then all kept events are sent.
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
        """In order. Searched from the newest event, so that a live reader does not scan the whole log each time."""
        newer: list[Event] = []
        for events in self._events.values():
            newer += takewhile(lambda event: event.seq > seq, reversed(events))
        return sorted(newer, key=lambda event: event.seq)
