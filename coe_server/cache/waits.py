"""How long whoever comes now would wait for each expert, and how long anybody can. Looks at slots, changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from coe_server.cache.forecast import Forecast
from coe_server.cache.scheduler import Limits, wait_bound_seconds
from coe_server.cache.slot import Slot
from coe_server.cache.tiers import Tier


class Outlook(NamedTuple):
    """What a request for an expert would meet if it came now."""

    residency: str
    predicted_wait_seconds: float
    failure: str | None


class Waits:
    """`forecast` says when everybody's turn comes, as things are now."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        limits: Limits,
        clock: Callable[[], float],
        forecast: Callable[[], Forecast],
    ) -> None:
        self._slots = slots
        self._limits = limits
        self._clock = clock
        self._forecast = forecast

    def outlooks(self) -> dict[str, Outlook]:
        """Each expert by name."""
        forecast = cache(self._forecast)
        return {
            slot.name: Outlook(
                slot.residency, self._until_granted(slot, forecast), slot.failure.reason if slot.failure else None
            )
            for slot in self._slots.values()
        }

    def predicted_seconds(self, slot: Slot) -> float:
        """Until a request that came now would be granted a lease, as the queues are now."""
        return self._until_granted(slot, self._forecast)

    def bound_seconds(self) -> float:
        """The longest anybody waits, with the costs measured so far."""
        return self._bound(self._limits)

    def usual_bound_seconds(self) -> float:
        """The same if every answer took as long as those measured so far (guessed before): what full queues cost."""
        seconds = min(self.usual_answer_seconds, self._limits.max_generation_seconds)
        return self._bound(replace(self._limits, max_generation_seconds=seconds))

    @property
    def usual_answer_seconds(self) -> float:
        """Of the slowest expert, as measured; a guess before."""
        return max((slot.costs.service for slot in self._slots.values()), default=0.0)

    @property
    def sharing(self) -> int:
        """How many experts may have to make room for one another."""
        return sum(slot.shares_the_device for slot in self._slots.values())

    def _bound(self, limits: Limits) -> float:
        returns = [slot.costs.slowest_return for slot in self._slots.values() if slot.shares_the_device]
        return wait_bound_seconds(limits, self.sharing, max(returns, default=0.0))

    def _until_granted(self, slot: Slot, forecast: Callable[[], Forecast]) -> float:
        ahead = len(slot.waiters) + (slot.leases if slot.settled else 0)
        rounds = ahead // self._limits.max_concurrency
        return self._until_up(slot, forecast) + rounds * slot.costs.service

    def _until_up(self, slot: Slot, forecast: Callable[[], Forecast]) -> float:
        """Seconds until it is on the device and lets in those who come now."""
        if slot.expert.remote or (slot.settled and not slot.draining):
            return 0.0
        if slot.name in (until := forecast().until):
            return until[slot.name]
        if slot.moving is not None and slot.moving.target is Tier.DEVICE:
            return slot.seconds_left(self._clock())
        rests = slot.resting_tier if slot.tier is Tier.DEVICE else slot.tier
        return forecast().after_all(rests is Tier.DISK) + slot.costs.move(rests, Tier.DEVICE)
