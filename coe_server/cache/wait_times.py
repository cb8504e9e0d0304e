"""Pure: an estimate of the wait for each expert.

It assumes that no other request arrives. It assigns the turns ahead to the places on the device.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Ahead(NamedTuple):
    """An expert's next turn, as it delays the turns after it."""

    expert: str
    from_disk: bool
    switch_seconds: float
    serving_seconds: float  # for its waiting requests once it is loaded, and for its move off the device


class Expected(NamedTuple):
    """The state of an expert as it affects a request that arrives now; valid until the slot changes."""

    residency: str
    failure: str | None
    at_hand: bool  # loaded, and admits new requests
    on_its_way: bool  # moving to the device now
    from_disk: bool  # needs a cold start; false: a wake
    up_seconds: float  # duration of that move
    serving_seconds: float  # for the requests admitted before this one, once it is loaded
    makes_room: float | None  # grant time of the lease that must end before this request is admitted
    answer_seconds: float  # usual duration of an answer
    turn: Ahead  # of its waiting requests

    def left_to_serve(self, now: float) -> float:
        """`serving_seconds`, less the elapsed part of the answer that must end first."""
        return self.serving_seconds - passed(self.makes_room, self.answer_seconds, now)


def passed(since: float | None, usual_seconds: float, now: float) -> float:
    """Elapsed seconds of an answer that began at `since`, at most `usual_seconds`; 0 if there is none."""
    return 0.0 if since is None else min(now - since, usual_seconds)


def makes_room(let_in: Sequence[float], places: int, place: int) -> float | None:
    """Grant time of the lease whose release admits the request at this position; None if no lease must end first.

    Positions count the held leases, granted at the times `let_in`, oldest first, then the waiting requests.
    """
    position = place % places
    return let_in[position] if position < len(let_in) else None


class Forecast:
    """Predicts when the experts of `turns` (in order) are loaded.

    `places`: for each expert that shares the device, the seconds until its place can be free. Engines start one at a
    time, the next one not before `starts_from`. During a start loaded experts go on serving, and other experts may
    wake in places that become free.
    """

    def __init__(self, turns: Iterable[Ahead], places: Iterable[float], starts_from: float) -> None:
        self.until: dict[str, float] = {}  # expert -> seconds until it is loaded
        self._places = list(places) or [0.0]
        heapq.heapify(self._places)
        self._starts_from = starts_from
        later: list[Ahead] = []
        for turn in turns:
            if turn.from_disk and (later or self._starts_from > self._places[0]):
                later.append(turn)
            else:
                self._give(turn)
        self.wake_after_all = self._places[0]  # when a wake after all these turns can begin
        for turn in later:
            self._give(turn)
        self.start_after_all = max(self._places[0], self._starts_from)

    def _give(self, turn: Ahead) -> None:
        begins = max(heapq.heappop(self._places), self._starts_from if turn.from_disk else 0.0)
        up = self.until[turn.expert] = begins + turn.switch_seconds
        if turn.from_disk:
            self._starts_from = up
        heapq.heappush(self._places, up + turn.serving_seconds)
