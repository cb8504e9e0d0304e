"""How long whoever comes now would wait for each expert, and how long anybody can. Looks at slots, changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from coe_server.cache.forecast import Expected, Forecast
from coe_server.cache.overview import Overview
from coe_server.cache.scheduler import Limits
from coe_server.cache.slot import Slot
from coe_server.cache.tiers import Bytes
from coe_server.cache.wait_bound import Sharer, slowest_switch_seconds, wait_bound_seconds, widest_request


class Outlook(NamedTuple):
    """What a request for an expert would meet if it came now."""

    residency: str
    predicted_wait_seconds: float
    failure: str | None
    returns_seconds: float | None = None  # of one that has failed: until a request may be let in again


class Waits:
    """`overview` knows everybody's place now, `clock` gives seconds."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        overview: Overview,
        capacity: Bytes,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._overview = overview
        self._capacity = capacity
        self._limits = limits
        self._clock = clock
        self._widest = 1  # leases that one request has taken so far

    def saw(self, leases: int) -> None:
        """A request takes that many leases."""
        self._widest = max(self._widest, leases)

    def outlooks(self) -> dict[str, Outlook]:
        """Each expert by name."""
        found: dict[str, Outlook] = {}
        now = self._clock()
        forecast: Forecast | None = None  # the same for all of them; nobody needs it while all are at hand
        for name, one in self._overview.expected().items():
            seconds = one.serving_seconds if one.makes_room is None else one.left_to_serve(now)  # most have room
            if not one.at_hand:
                forecast = forecast or self._forecast()
                seconds += self._until_up(name, one, forecast)
            found[name] = Outlook(one.residency, seconds, *self._absence(name, one.failure, now))
        return found

    def predicted_seconds(self, name: str) -> float:
        """Until a request that came now would be granted a lease, as the queues are now."""
        one = self._overview.expected()[name]
        return one.left_to_serve(self._clock()) + (0.0 if one.at_hand else self._until_up(name, one, self._forecast()))

    def bound_seconds(self) -> float:
        """The longest wait, with the costs measured and the fan-outs seen so far."""
        return self._bound(self._limits, self._widest)

    def widest_bound_seconds(self) -> float:
        """The same once a request has asked for as many answers as one may."""
        return self._bound(self._limits, widest_request(self._limits))

    def usual_bound_seconds(self) -> float:
        """The same if every answer took as long as those measured so far (guessed before): what full queues cost."""
        seconds = min(self.usual_answer_seconds, self._limits.max_generation_seconds)
        return self._bound(replace(self._limits, max_generation_seconds=seconds), self._widest)

    def _absence(self, name: str, failure: str | None, now: float) -> tuple[str | None, float | None]:
        """Why no request is let in now, and for how long; (None, None) for most."""
        slot = self._slots[name]
        if slot.backoff.since is not None:
            refusal = slot.backoff.refusal(now)
            return refusal, None if refusal is None else slot.backoff.seconds_left(now)
        return failure, None if slot.failure is None else max(0.0, slot.failure.until - now)

    @property
    def usual_answer_seconds(self) -> float:
        """Of the slowest expert, as measured; a guess before."""
        return max((slot.costs.service for slot in self._slots.values()), default=0.0)

    @property
    def sharing(self) -> int:
        """How many experts may have to make room for one another."""
        return len(self._sharers)

    @property
    def switch_seconds(self) -> float:
        """The slowest switch, with the costs measured so far."""
        host_left = self._capacity.host - sum(slot.engine.footprint.host for slot in self._slots.values())
        return slowest_switch_seconds([_sharer(slot) for slot in self._sharers], host_left)

    @property
    def costs_are_measured(self) -> bool:
        """Whether none of the moves in the bound is guessed."""
        return all(slot.costs.moves_are_measured for slot in self._sharers)

    @property
    def _sharers(self) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.shares_the_device]

    def _bound(self, limits: Limits, widest: int) -> float:
        return wait_bound_seconds(limits, self.sharing, self.switch_seconds, widest)

    def _forecast(self) -> Forecast:
        return self._overview.forecast(self._clock())

    def _until_up(self, name: str, expected: Expected, forecast: Forecast) -> float:
        """Seconds until it is on the device and lets in those who come now."""
        turn = forecast.until.get(name)
        if turn is not None:
            return turn
        if expected.on_its_way:
            return self._slots[name].seconds_left(self._clock())
        return (forecast.start_after_all if expected.from_disk else forecast.wake_after_all) + expected.up_seconds


def _sharer(slot: Slot) -> Sharer:
    return Sharer(slot.engine.footprint, slot.costs.slowest_way_up, slot.costs.slowest_way_down)
