"""Each expert's wait, or failure, that a request would meet now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import NamedTuple

from coe_server.cache.overview import Overview
from coe_server.cache.policy import Limits, Policy
from coe_server.cache.scheduler import turns
from coe_server.cache.slot import Slot, seconds_left
from coe_server.cache.tiers import Ledger, Tier, idle_tier
from coe_server.cache.wait_bound import shares_the_device
from coe_server.cache.wait_times import Expected, Forecast, makes_room, passed


class Outlook(NamedTuple):
    """The wait, or the failure, that a request for an expert would meet now."""

    residency: str
    predicted_wait_seconds: float
    failure: str | None
    returns_seconds: float | None = None  # seconds until a failed expert admits requests again


class Waits:
    """Each expert's wait now, from the present queues and measured costs. `clock` returns seconds."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        overview: Overview,
        ledger: Ledger,
        limits: Limits,
        policy: Policy,
        clock: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._overview = overview
        self._ledger = ledger
        self._limits = limits
        self._policy = policy
        self._clock = clock
        self._steady: dict[str, tuple[Expected, Outlook]] = {}  # outlooks that do not change with time alone

    def outlooks(self) -> Outlooks:
        """Each expert's outlook by name. Valid only until the next await."""
        return Outlooks(self._slots, self._overview, self._clock(), self._steady, self._forecast)

    def predicted_seconds(self, name: str) -> float:
        """Predicted wait of a request that arrives now until its lease, in seconds."""
        return self.outlooks()[self._slots[name].name].predicted_wait_seconds

    def _forecast(self, now: float) -> Forecast:
        """When each waiting expert is loaded, if no other expert is requested."""
        groups, standing = self._overview.groups, self._overview.standing
        queues = [self._overview.queue_of(slot) for slot in groups.in_turn.values()]
        order = turns(queues, now, self._limits.max_wait_seconds, self._policy)
        waiting = [self._overview.expected_of(turn.expert).turn for turn in order]
        here = [self._slots[name] for name in standing.tiers[Tier.DEVICE]]
        places = [_can_leave_in(slot, now) for slot in here if shares_the_device(slot)]
        largest = max([slot.engine.footprint.device_awake for slot in groups.in_turn.values() or here], default=0)
        free = sum(max(0, card) // max(largest, 1) for card in (self._ledger.capacity - standing.used).cards)
        places += [0.0] * min(free, len(waiting) + 1)  # more free places than turns make no difference
        starting = (seconds_left(slot, now) for slot in groups.starting.values())
        return Forecast(waiting, places, max(starting, default=0.0))


class Outlooks(Mapping[str, Outlook]):
    """Each expert's outlook at one moment, computed on access.

    `steady`: a cache of earlier outlooks; an entry is valid while its `Expected` is the same object. `forecast` is
    called once at most, with `now`: no outlook needs it while all experts are at hand.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        overview: Overview,
        now: float,
        steady: dict[str, tuple[Expected, Outlook]],
        forecast: Callable[[float], Forecast],
    ) -> None:
        self._slots = slots
        self._overview = overview
        self._now = now
        self._steady = steady
        self._make_forecast = forecast
        self._forecast: Forecast | None = None  # shared by all experts

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
        forecast = self._forecast = self._forecast or self._make_forecast(self._now)
        turn = forecast.until.get(name)
        if turn is not None:
            return turn
        if expected.on_its_way:
            return seconds_left(self._slots[name], self._now)
        return (forecast.start_after_all if expected.from_disk else forecast.wake_after_all) + expected.up_seconds

    def _absence(self, name: str, failure: str | None) -> tuple[str | None, float | None]:
        """Why no request is admitted now, and for how many seconds; (None, None) if requests are."""
        slot = self._slots[name]
        if slot.backoff.since is not None:
            refusal = slot.backoff.refusal(self._now)
            return refusal, None if refusal is None else slot.backoff.seconds_left(self._now)
        return failure, None if slot.failure is None else max(0.0, slot.failure.until - self._now)


def _can_leave_in(slot: Slot, now: float) -> float:
    """Seconds until an expert that is loaded, or being loaded, can have left the device."""
    goes_on = slot.leases + (slot.gate if slot.draining else slot.waiters.leases)
    down, service = slot.costs.move(Tier.DEVICE, idle_tier(slot.engine.footprint)), slot.costs.service
    last = makes_room(slot.let_in, slot.places, goes_on - 1) if goes_on else None
    left = ceil(goes_on / slot.places) * service - passed(last, service, now)
    return seconds_left(slot, now) + left + down
