"""Pure: how long a request would wait for its turn if nobody else came: the turns ahead of it, dealt to the places on
the device. No clock, no I/O; seconds in, seconds out. An estimate, not a promise: see `wait_bound_seconds` for that."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple


class Ahead(NamedTuple):
    """An expert whose turn comes, as far as those behind it are concerned."""

    expert: str
    from_disk: bool
    switch_seconds: float
    serving_seconds: float  # of those who wait for it, once it is there, and of its way off the device again


class Expected(NamedTuple):
    """What whoever came now would meet at an expert, until something about it changes."""

    residency: str
    failure: str | None
    at_hand: bool  # it is up, and lets in those who come
    on_its_way: bool  # to the device, now
    from_disk: bool  # else it has to start, or is woken from where it rests
    up_seconds: float  # which takes so long
    serving_seconds: float  # of those who go in before, once it is up
    makes_room: float | None  # of those, when the one inside was let in who has to end first
    answer_seconds: float  # that an answer usually takes
    turn: Ahead  # of those who wait for it

    def left_to_serve(self, now: float) -> float:
        """`serving_seconds`, less what is over of the answer that goes on inside."""
        return self.serving_seconds - passed(self.makes_room, self.answer_seconds, now)


def passed(since: float | None, usual_seconds: float, now: float) -> float:
    """Of an answer that began then and takes as long as usual: none where there is none, never more than all of it."""
    return 0.0 if since is None else min(now - since, usual_seconds)


class Forecast:
    """When each of `turns`, first one first, will have its expert on the device.

    `places`: for each expert that shares the device, in how many seconds it can have left it. Engines start one at a
    time, the next one from `starts_from` on; while one starts, whoever else has a place goes on, and wakes take the
    places that become free.
    """

    def __init__(self, turns: Iterable[Ahead], places: Iterable[float], starts_from: float) -> None:
        self.until: dict[str, float] = {}  # expert -> seconds
        self._places = list(places) or [0.0]
        heapq.heapify(self._places)
        self._starts_from = starts_from
        later: list[Ahead] = []
        for turn in turns:
            if turn.from_disk and (later or self._starts_from > self._places[0]):
                later.append(turn)
            else:
                self._give(turn)
        self.wake_after_all = self._places[0]  # when an expert whose turn is the last can begin to come
        for turn in later:
            self._give(turn)
        self.start_after_all = max(self._places[0], self._starts_from)

    def _give(self, turn: Ahead) -> None:
        begins = max(heapq.heappop(self._places), self._starts_from if turn.from_disk else 0.0)
        up = self.until[turn.expert] = begins + turn.switch_seconds
        if turn.from_disk:
            self._starts_from = up
        heapq.heappush(self._places, up + turn.serving_seconds)
