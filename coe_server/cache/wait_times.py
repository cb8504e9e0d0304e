"""An estimate of each expert's wait now. No I/O.

It assumes that no other request arrives. It assigns the turns ahead to the places on the device.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from coe_server.cache.overview import Overview
    from coe_server.cache.slot import Slot


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


class Outlook(NamedTuple):
    """The wait, or the failure, that a request for an expert would meet now."""

    residency: str
    predicted_wait_seconds: float
    failure: str | None
    returns_seconds: float | None = None  # seconds until a failed expert admits requests again


class Waits:
    """Each expert's wait now, from the present queues and measured costs. `clock` returns seconds."""

    def __init__(self, slots: Mapping[str, Slot], overview: Overview, clock: Callable[[], float]) -> None:
        self._slots = slots
        self._overview = overview
        self._clock = clock
        self._steady: dict[str, tuple[Expected, Outlook]] = {}  # outlooks that do not change with time alone

    def outlooks(self) -> Outlooks:
        """Each expert's outlook by name. Valid only until the next await."""
        return Outlooks(self._slots, self._overview, self._clock(), self._steady)

    def predicted_seconds(self, name: str) -> float:
        """Predicted wait of a request that arrives now until its lease, in seconds."""
        return self.outlooks()[self._slots[name].name].predicted_wait_seconds


class Outlooks(Mapping[str, Outlook]):
    """Each expert's outlook at one moment, computed on access.

    `steady`: a cache of earlier outlooks; an entry is valid while its `Expected` is the same object.
    """

    def __init__(
        self, slots: Mapping[str, Slot], overview: Overview, now: float, steady: dict[str, tuple[Expected, Outlook]]
    ) -> None:
        self._slots = slots
        self._overview = overview
        self._now = now
        self._steady = steady
        self._forecast: Forecast | None = None  # shared by all experts; not needed while all are at hand

    def __getitem__(self, name: str) -> Outlook:
        expected = self._overview.expected_of(name)
        backs_off = self._slots[name].backoff.since is not None
        before, outlook = self._steady.get(name, (None, None))
        if before is expected and outlook is not None and not backs_off:
            return outlook
        outlook = Outlook(expected.residency, self._seconds(name, expected), *self._absence(name, expected.failure))
        if expected.at_hand and expected.makes_room is None and expected.failure is None and not backs_off:
            self._steady[name] = expected, outlook
        return outlook

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def _seconds(self, name: str, expected: Expected) -> float:
        """Seconds until a request that arrives now is granted a lease."""
        serving = expected.left_to_serve(self._now)
        return serving if expected.at_hand else serving + self._until_up(name, expected)

    def _until_up(self, name: str, expected: Expected) -> float:
        """Seconds until it is loaded and admits new requests."""
        forecast = self._forecast = self._forecast or self._overview.forecast(self._now)
        turn = forecast.until.get(name)
        if turn is not None:
            return turn
        if expected.on_its_way:
            return self._overview.seconds_left(name, self._now)
        return (forecast.start_after_all if expected.from_disk else forecast.wake_after_all) + expected.up_seconds

    def _absence(self, name: str, failure: str | None) -> tuple[str | None, float | None]:
        """Why no request is admitted now, and for how many seconds; (None, None) if requests are."""
        slot = self._slots[name]
        if slot.backoff.since is not None:
            refusal = slot.backoff.refusal(self._now)
            return refusal, None if refusal is None else slot.backoff.seconds_left(self._now)
        return failure, None if slot.failure is None else max(0.0, slot.failure.until - self._now)
