"""Views of all slots for the scheduler, the planner and the forecast, kept current as slots change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil

from coe_server.cache.policy import Policy
from coe_server.cache.prefetch import Prospect
from coe_server.cache.scheduler import Queue
from coe_server.cache.slot import Slot, residency_of
from coe_server.cache.tiers import Holding, Standing, Tier, idle_tier
from coe_server.cache.wait_times import Ahead, Expected, makes_room
from coe_server.engines.engine import Seat


@dataclass(slots=True)
class Groups:
    """The slots by what a pass asks of them, each by its name."""

    settled: dict[str, Slot] = field(default_factory=dict)  # on the device, not moving
    waiting: dict[str, Slot] = field(default_factory=dict)
    at_hand: dict[str, Slot] = field(default_factory=dict)  # settled, with waiting requests
    moving: dict[str, Slot] = field(default_factory=dict)
    starting: dict[str, Slot] = field(default_factory=dict)  # from disk, or on other cards
    failed: dict[str, Slot] = field(default_factory=dict)
    below_pin: dict[str, Slot] = field(default_factory=dict)
    in_turn: dict[str, Slot] = field(default_factory=dict)  # their requests wait for a load, or for the end of a drain
    in_turn_off_disk: dict[str, Slot] = field(default_factory=dict)  # of those, the ones that need no start
    _states: dict[str, tuple[object, ...]] = field(default_factory=dict, init=False)  # of each, when it was sorted in

    @property
    def calm(self) -> bool:
        """True if no request waits for an expert to be loaded and no expert moves."""
        return not self.in_turn and not self.moving

    @property
    def starts_on(self) -> Seat | None:
        """The cards on which an engine starts; None if none does."""
        return next((slot.moving.seat for slot in self.starting.values() if slot.moving is not None), None)

    def sort_in(self, slots: Iterable[Slot]) -> None:
        """Put each slot into the groups that it belongs to now."""
        for slot in slots:
            name, waits = slot.name, bool(slot.waiters)
            # all that decides to which groups it belongs
            state = (waits, slot.tier, slot.moving, slot.failure, slot.pin, slot.draining, slot.restarting)
            if state == self._states.get(name):
                continue
            self._states[name] = state
            settled, may_move = slot.settled, slot.moving is None and not slot.restarting
            in_turn = waits and may_move and (slot.tier is not Tier.DEVICE or slot.draining)
            for group, belongs in (
                (self.settled, settled),
                (self.waiting, waits),
                (self.at_hand, waits and settled),
                (self.moving, slot.moving is not None),
                (self.starting, slot.moving is not None and slot.moving.is_start),
                (self.failed, slot.failure is not None),
                (self.below_pin, slot.tier.depth > slot.pin.depth),
                (self.in_turn, in_turn),
                (self.in_turn_off_disk, in_turn and slot.tier is not Tier.DISK),
            ):
                if belongs:
                    group[name] = slot
                else:
                    group.pop(name, None)

    def forget(self, name: str) -> None:
        for group in (
            *(self.settled, self.waiting, self.at_hand, self.moving, self.starting, self.failed),
            *(self.below_pin, self.in_turn, self.in_turn_off_disk, self._states),
        ):
            group.pop(name, None)


class Overview:
    """Derived views of all slots: groups, tiers, waiting requests. Avoids a scan of 150 slots per pass.

    The views are always current. All but the groups are computed on access, because most passes need none of them.
    """

    def __init__(self, slots: Mapping[str, Slot], changes: dict[str, None], policy: Policy) -> None:
        self._slots = slots
        self._changes = changes  # names, added by the slots and removed here
        self._policy = policy
        self._groups = Groups()
        self._queues: dict[str, Queue] = {}
        self._expected: dict[str, Expected] = {}
        self._standing = Standing.of(())
        self._to_stand_anew: dict[str, Slot] = {}  # changed since `standing` was last read
        self._prospects_here: dict[str, Prospect] = {}
        self._prospects_away: dict[str, Prospect] = {}
        self._prospects_anew: dict[str, Slot] = {}  # changed since `prospects` was last read

    @property
    def groups(self) -> Groups:
        """The slots in groups, as they are until the next change of a slot."""
        if self._changes:
            self._look_again()
        return self._groups

    @property
    def standing(self) -> Standing:
        """All experts as the planner sees them."""
        if self._changes:
            self._look_again()
        if self._to_stand_anew:
            changed = [holding_of(slot, self._policy) for slot in self._to_stand_anew.values()]
            self._standing = self._standing.updated(changed)
            self._to_stand_anew.clear()
        return self._standing

    def prospects(self) -> tuple[Mapping[str, Prospect], Mapping[str, Prospect]]:
        """The experts on the device, which may be evicted, and those off it, which may be prefetched.

        Only experts that were evicted may be prefetched.
        """
        if self._changes:
            self._look_again()
        for name, slot in self._prospects_anew.items():
            self._prospects_here.pop(name, None)
            self._prospects_away.pop(name, None)
            if name in self._slots and not slot.expert.remote:
                there = self._prospects_here if slot.tier is Tier.DEVICE else self._prospects_away
                there[name] = _prospect(slot, self._policy)
        self._prospects_anew.clear()
        return self._prospects_here, self._prospects_away

    def queues(self) -> tuple[Queue, ...]:
        """The waiting requests of every expert that could have a turn now: engines start one at a time.

        In strict order of arrival only the expert of the oldest request could.
        """
        if self._changes:
            self._look_again()
        groups = self._groups
        if not groups.in_turn:
            return ()
        able = groups.in_turn_off_disk if groups.starting else groups.in_turn
        if not self._policy.collates:
            oldest = min(groups.waiting.values(), key=lambda slot: slot.waiters.arrivals[0])
            able = {oldest.name: oldest} if oldest.name in groups.in_turn else {}
        return tuple([self._queues.get(name) or self.queue_of(slot) for name, slot in able.items()])

    def queue_of(self, slot: Slot) -> Queue:
        """The requests that wait for an expert that is in a turn."""
        found = self._queues.get(slot.name)
        if found is None:
            found = self._queues[slot.name] = _queue(slot)
        return found

    def expected_of(self, name: str) -> Expected:
        """An expert's state as it affects a request that arrives now, without the turns ahead (see `Waits`).

        Raises KeyError if the name is no slot's.
        """
        if self._changes:
            self._look_again()
        found = self._expected.get(name)
        if found is None:
            if name not in self._slots:
                raise KeyError(name)
            found = self._expected[name] = _expected(self._slots[name])
        return found

    def _look_again(self) -> None:
        """Update the groups, and forget what was computed of each slot that has changed since the last call."""
        present = []
        for name in self._changes:
            slot = self._slots[name]  # of an expert that was removed, its last one: idle, on disk
            self._queues.pop(name, None)
            self._expected.pop(name, None)
            self._to_stand_anew[name] = self._prospects_anew[name] = slot
            if name in self._slots:
                present.append(slot)
            else:
                self._groups.forget(name)
        self._groups.sort_in(present)
        self._changes.clear()


def holding_of(slot: Slot, policy: Policy) -> Holding:
    """The planner's view of a slot: in the target tier of its present move."""
    return Holding(
        slot.name,
        slot.moving.target if slot.moving else slot.tier,
        slot.engine.footprint,
        busy=slot.busy,
        wanted=bool(slot.waiters),
        leaving=slot.draining,
        since=slot.since,
        worth=slot.last_used if policy.retention == "lru" else float(slot.uses),
        pin=slot.pin,
        seat=slot.moving.seat if slot.moving else slot.seat,
        seats=slot.seats,
    )


def _prospect(slot: Slot, policy: Policy) -> Prospect:
    idle = idle_tier(slot.engine.footprint)
    up = slot.costs.move(idle if slot.tier is Tier.DEVICE else slot.tier, Tier.DEVICE)
    down = slot.costs.move(Tier.DEVICE, idle)
    return Prospect(holding_of(slot, policy), up, down, may_come=slot.pushed_out)


def _queue(slot: Slot) -> Queue:
    """The scheduler's view of the requests that wait for it."""
    restart_seconds = slot.costs.move(Tier.DISK, Tier.DEVICE) if slot.tier is Tier.HOST else 0.0
    weight = slot.waiters.weight / len(slot.waiters)
    switch_seconds = slot.costs.move(slot.tier, Tier.DEVICE)
    return Queue(slot.name, tuple(slot.waiters.arrivals), switch_seconds, weight, restart_seconds)


def _expected(slot: Slot) -> Expected:
    """The view of a request that arrives now."""
    rests, settled = idle_tier(slot.engine.footprint), slot.settled
    service, waiting = slot.costs.service, slot.waiters.leases
    up_from = rests if slot.tier is Tier.DEVICE else slot.tier
    ahead = waiting + (slot.leases if settled else 0)
    must_end = ahead >= slot.places and not slot.draining
    return Expected(
        residency_of(slot),
        slot.failure.reason if slot.failure else None,
        slot.expert.remote or (settled and not slot.draining),
        slot.moving is not None and slot.moving.target is Tier.DEVICE,
        up_from is Tier.DISK,
        slot.costs.move(up_from, Tier.DEVICE),
        ahead // slot.places * service,
        makes_room(slot.let_in, slot.places, ahead) if must_end else None,
        service,
        Ahead(
            slot.name,
            slot.tier is Tier.DISK,
            slot.costs.move(slot.tier, Tier.DEVICE),
            ceil(waiting / slot.places) * service + slot.costs.move(Tier.DEVICE, rests),
        ),
    )
