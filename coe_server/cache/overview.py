"""All slots as the scheduler and the planner see them. Looks only at those that have changed. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from coe_server.cache.forecast import Ahead, Forecast
from coe_server.cache.planner import Holding, Standing
from coe_server.cache.policy import Policy
from coe_server.cache.scheduler import Limits, Queue, turns
from coe_server.cache.slot import Slot
from coe_server.cache.tiers import Bytes, Tier


class Overview:
    """What a pass over 150 experts would otherwise work out anew: who stands where, moves, waits or has failed."""

    def __init__(self, slots: Mapping[str, Slot], policy: Policy) -> None:
        self.standing = Standing.of(())
        self.waiting: dict[str, Slot] = {}
        self.at_hand: dict[str, Slot] = {}  # waited for, and on the device
        self.moving: dict[str, Slot] = {}
        self.failed: dict[str, Slot] = {}
        self._slots = slots
        self._policy = policy
        self._queues: dict[str, Queue] = {}
        self._queues_off_disk: dict[str, Queue] = {}  # of those, the ones that need no start
        self._changed: dict[str, Slot] = dict(slots)
        for name, slot in slots.items():
            slot.waiters.changed = partial(self._changed.__setitem__, name, slot)

    def refresh(self) -> None:
        """Look again at every slot that has changed since the last time."""
        changed = tuple(self._changed.values())
        self._changed.clear()
        for slot in changed:
            _keep(self.waiting, slot, bool(slot.waiters))
            _keep(self.at_hand, slot, bool(slot.waiters) and slot.settled)
            _keep(self.moving, slot, slot.moving is not None)
            _keep(self.failed, slot, slot.failure is not None)
            self._queues.pop(slot.name, None)
            self._queues_off_disk.pop(slot.name, None)
            if slot.waits_for_a_turn:
                queue = self._queues[slot.name] = slot.queue()
                if slot.tier is not Tier.DISK:
                    self._queues_off_disk[slot.name] = queue
        if changed:
            self.standing = self.standing.updated(self.holding(slot) for slot in changed)

    def holding(self, slot: Slot) -> Holding:
        return slot.holding(self._policy.retention)

    @property
    def starting(self) -> bool:
        """An engine is on its way up from disk."""
        return any(slot.is_starting for slot in self.moving.values())

    @property
    def anyone_waits(self) -> bool:
        """For an expert that would have to be brought."""
        return bool(self._queues)

    def queued_on_disk(self) -> tuple[Queue, ...]:
        """Who waits for an engine to be started that is not on its way yet."""
        return tuple(queue for name, queue in self._queues.items() if name not in self._queues_off_disk)

    @property
    def calm(self) -> bool:
        """Nobody waits for an expert to be brought, and none is on its way anywhere."""
        return not self._queues and not self.moving

    def forecast(self, now: float, limits: Limits, capacity: Bytes) -> Forecast:
        """When everybody's turn comes if nobody else is asked for."""
        self.refresh()
        order = turns(self._queues.values(), now, limits.max_wait_seconds, self._policy)
        waiting = [self._slots[turn.expert] for turn in order]
        here = [self._slots[name] for name in self.standing.tiers[Tier.DEVICE]]
        places = [_can_leave_in(slot, now, limits) for slot in here if slot.shares_the_device]
        largest = max((slot.engine.footprint.device_awake for slot in waiting or here), default=0)
        free = (capacity - self.standing.used).device // max(largest, 1)
        places += [0.0] * min(free, len(waiting) + 1)  # nobody asks for more
        starting = (slot.seconds_left(now) for slot in self.moving.values() if slot.is_starting)
        return Forecast((_ahead(slot, limits) for slot in waiting), places, max(starting, default=0.0))

    def queues(self) -> tuple[Queue, ...]:
        """Who waits for a turn and could have one: engines start one at a time.

        In strict order of arrival nobody but the oldest has a turn.
        """
        if not self._policy.collates:
            oldest = min(self.waiting.values(), key=lambda slot: slot.waiters.oldest, default=None)
            return (self._queues[oldest.name],) if oldest is not None and oldest.name in self._queues else ()
        if self.starting:
            return tuple(self._queues_off_disk.values())
        return tuple(self._queues.values())


def _ahead(slot: Slot, limits: Limits) -> Ahead:
    serving = slot.serving_seconds(len(slot.waiters), limits.max_concurrency)
    return Ahead(slot.name, slot.tier is Tier.DISK, slot.switch_seconds(), serving)


def _can_leave_in(slot: Slot, now: float, limits: Limits) -> float:
    """Seconds until an expert on the device, or on its way there, can have left it."""
    goes_on = slot.leases + (slot.gate if slot.draining else len(slot.waiters))
    down = slot.costs.move(Tier.DEVICE, slot.resting_tier)
    return slot.seconds_left(now) + slot.serving_seconds(goes_on, limits.max_concurrency) + down


def _keep(where: dict[str, Slot], slot: Slot, belongs: bool) -> None:
    if belongs:
        where[slot.name] = slot
    else:
        where.pop(slot.name, None)
