"""Views of all slots for the scheduler, the planner and the forecast, kept current as slots change."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from coe_server.cache.backoff import Failure
from coe_server.cache.evictions import Move
from coe_server.cache.policy import Limits, Policy
from coe_server.cache.prefetch import Prospect
from coe_server.cache.slot import Slot, seconds_left, shares_the_device
from coe_server.cache.tiers import Holding, Ledger, Standing, Tier
from coe_server.cache.turns import Queue, turns
from coe_server.cache.wait_times import Ahead, Expected, Forecast, passed
from coe_server.engines.engine import Seat

_State = tuple[
    bool, Tier, Move | None, Failure | None, Tier, bool
]  # everything that decides which sets a slot belongs to


class Overview:
    """Derived views of all slots: tier, moves, waiting requests, failures. Avoids a scan of 150 slots per pass.

    The views are always current. The planner's and the scheduler's views are computed on access, because most passes
    need neither.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        changes: dict[str, None],
        policy: Policy,
        limits: Limits,
        ledger: Ledger,
    ) -> None:
        self._slots = slots
        self._changes = changes  # names, added by the slots and removed here
        self._policy = policy
        self._limits = limits
        self._ledger = ledger
        self._settled: dict[str, Slot] = {}
        self._waiting: dict[str, Slot] = {}
        self._at_hand: dict[str, Slot] = {}
        self._moving: dict[str, Slot] = {}
        self._starting: dict[str, Slot] = {}
        self._failed: dict[str, Slot] = {}
        self._below_pin: dict[str, Slot] = {}
        self._in_turn: dict[str, Slot] = {}  # slots that wait for a turn
        self._in_turn_off_disk: dict[str, Slot] = {}  # of those, the ones that need no start
        self._queues: dict[str, Queue] = {}  # computed entries of `queues()`
        self._standing = Standing.of(())
        self._states: dict[str, _State] = {}  # of each slot, at the last update
        self._to_stand_anew: dict[str, Slot] = {}  # changed since `standing` was last read
        self._prospects_here: dict[str, Prospect] = {}
        self._prospects_away: dict[str, Prospect] = {}
        self._prospects_anew: dict[str, Slot] = {}  # changed since `prospects` was last read
        self._expected: dict[str, Expected] = {}
        self._to_expect_anew: dict[str, Slot] = {}  # changed since `expected` was last read

    @property
    def standing(self) -> Standing:
        """All experts as the planner sees them."""
        self._look_again()
        if self._to_stand_anew:
            self._standing = self._standing.updated([self.holding(slot) for slot in self._to_stand_anew.values()])
            self._to_stand_anew.clear()
        return self._standing

    def holding(self, slot: Slot) -> Holding:
        return _holding(slot, self._policy)

    def prospects(self) -> tuple[Mapping[str, Prospect], Mapping[str, Prospect]]:
        """The experts on the device, which may be evicted, and those off it, which may be prefetched.

        Only experts that were evicted may be prefetched.
        """
        self._look_again()
        for name, slot in self._prospects_anew.items():
            self._prospects_here.pop(name, None)
            self._prospects_away.pop(name, None)
            if not slot.expert.remote:
                there = self._prospects_here if slot.tier is Tier.DEVICE else self._prospects_away
                there[name] = self._prospect(slot)
        self._prospects_anew.clear()
        return self._prospects_here, self._prospects_away

    @property
    def settled(self) -> tuple[Slot, ...]:
        """Experts on the device that do not move."""
        self._look_again()
        return tuple(self._settled.values())

    @property
    def at_hand(self) -> tuple[Slot, ...]:
        """Settled experts with waiting requests."""
        self._look_again()
        return tuple(self._at_hand.values())

    @property
    def failed(self) -> tuple[Slot, ...]:
        if self._changes:
            self._look_again()
        return tuple(self._failed.values())

    @property
    def anyone_is_below_a_pin(self) -> bool:
        if self._changes:
            self._look_again()
        return bool(self._below_pin)

    @property
    def starting(self) -> bool:
        """True while an engine starts from disk."""
        self._look_again()
        return bool(self._starting)

    @property
    def starts_on(self) -> Seat:
        """The cards on which it starts."""
        return next((slot.moving.seat for slot in self._starting.values() if slot.moving is not None), (0,))

    @property
    def anyone_waits(self) -> bool:
        """True if requests wait for an expert that must be loaded."""
        self._look_again()
        return bool(self._in_turn)

    @property
    def calm(self) -> bool:
        """True if no request waits for an expert to be loaded and no expert moves."""
        self._look_again()
        return not self._in_turn and not self._moving

    def queues(self) -> tuple[Queue, ...]:
        """The waiting requests of every expert that could have a turn now: engines start one at a time.

        In strict order of arrival only the expert of the oldest request could.
        """
        if self._changes:
            self._look_again()
        if not self._policy.collates:
            oldest = min(self._waiting.values(), key=lambda slot: slot.waiters.arrivals[0], default=None)
            return (self._queue(oldest),) if oldest is not None and oldest.name in self._in_turn else ()
        able = self._in_turn_off_disk if self._starting else self._in_turn
        return tuple([self._queues.get(name) or self._queue(slot) for name, slot in able.items()])

    def expected(self) -> Mapping[str, Expected]:
        """Each expert's state as it affects a request that arrives now, without the turns ahead (see `forecast`)."""
        self._look_again()
        for name in tuple(self._to_expect_anew):
            self.expected_of(name)
        return self._expected

    def expected_of(self, name: str) -> Expected:
        """The same for one expert. Raises KeyError if the name is unknown."""
        if self._changes:
            self._look_again()
        slot = self._to_expect_anew.pop(name, None)
        if slot is not None:
            self._expected[name] = _expected(slot)
        return self._expected[name]

    def forecast(self, now: float) -> Forecast:
        """When each waiting expert is loaded, if no other expert is requested."""
        self._look_again()
        queues = [self._queue(slot) for slot in self._in_turn.values()]
        order = turns(queues, now, self._limits.max_wait_seconds, self._policy)
        waiting = [self.expected_of(turn.expert).turn for turn in order]
        standing = self.standing
        here = [self._slots[name] for name in standing.tiers[Tier.DEVICE]]
        places = [_can_leave_in(slot, now) for slot in here if shares_the_device(slot)]
        largest = max(
            [self._slots[name].engine.footprint.device_awake for name in self._in_turn or standing.tiers[Tier.DEVICE]],
            default=0,
        )
        free = sum(max(0, card) // max(largest, 1) for card in (self._ledger.capacity - standing.used).cards)
        places += [0.0] * min(free, len(waiting) + 1)  # more free places than turns make no difference
        starting = (seconds_left(slot, now) for slot in self._starting.values())
        return Forecast(waiting, places, max(starting, default=0.0))

    def seconds_left(self, name: str, now: float) -> float:
        """Seconds until the expert's move to the device ends."""
        return seconds_left(self._slots[name], now)

    def _prospect(self, slot: Slot) -> Prospect:
        idle = slot.idle_tier
        up = slot.costs.move(idle if slot.tier is Tier.DEVICE else slot.tier, Tier.DEVICE)
        down = slot.costs.move(Tier.DEVICE, idle)
        return Prospect(self.holding(slot), up, down, may_come=slot.pushed_out)

    def _queue(self, slot: Slot) -> Queue:
        if slot.name not in self._queues:
            self._queues[slot.name] = _queue(slot)
        return self._queues[slot.name]

    def _look_again(self) -> None:
        """Update the views of every slot that has changed since the last call."""
        if not self._changes:
            return
        for name in self._changes:
            slot = self._slots[name]
            if name not in self._slots:
                self._forget(name, slot)
                continue
            waits = bool(slot.waiters)
            state = (waits, slot.tier, slot.moving, slot.failure, slot.pin, slot.draining)
            if state != self._states.get(name):
                self._states[name] = state
                self._sort_in(slot, waits)
            self._queues.pop(name, None)
            self._to_stand_anew[name] = self._prospects_anew[name] = self._to_expect_anew[name] = slot
        self._changes.clear()

    def _forget(self, name: str, slot: Slot) -> None:
        """Drop an expert that was removed; its last slot is idle, on disk."""
        for views in (
            *(self._settled, self._waiting, self._at_hand, self._moving, self._starting, self._failed),
            *(self._below_pin, self._in_turn, self._in_turn_off_disk, self._queues, self._states, self._expected),
            *(self._prospects_here, self._prospects_away, self._prospects_anew, self._to_expect_anew),
        ):
            views.pop(name, None)
        self._to_stand_anew[name] = slot

    def _sort_in(self, slot: Slot, waits: bool) -> None:
        name, settled, in_turn = slot.name, slot.settled, waits and slot.waits_for_a_turn
        for where, belongs in (
            (self._settled, settled),
            (self._waiting, waits),
            (self._at_hand, waits and settled),
            (self._moving, slot.moving is not None),
            (self._starting, slot.moving is not None and slot.moving.is_start),
            (self._failed, slot.failure is not None),
            (self._below_pin, slot.tier.depth > slot.pin.depth),
            (self._in_turn, in_turn),
            (self._in_turn_off_disk, in_turn and slot.tier is not Tier.DISK),
        ):
            if belongs:
                where[name] = slot
            else:
                where.pop(name, None)


def _expected(slot: Slot) -> Expected:
    rests, settled, service, waiting = slot.idle_tier, slot.settled, slot.costs.service, slot.waiters.leases
    up_from = rests if slot.tier is Tier.DEVICE else slot.tier
    ahead = waiting + (slot.leases if settled else 0)
    must_end = ahead >= slot.places and not slot.draining
    return Expected(
        slot.residency,
        slot.failure.reason if slot.failure else None,
        slot.expert.remote or (settled and not slot.draining),
        slot.moving is not None and slot.moving.target is Tier.DEVICE,
        up_from is Tier.DISK,
        slot.costs.move(up_from, Tier.DEVICE),
        ahead // slot.places * service,
        _makes_room(slot, ahead) if must_end else None,
        service,
        Ahead(
            slot.name,
            slot.tier is Tier.DISK,
            slot.switch_seconds(),
            ceil(waiting / slot.places) * service + slot.costs.move(Tier.DEVICE, rests),
        ),
    )


def _holding(slot: Slot, policy: Policy) -> Holding:
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


def _queue(slot: Slot) -> Queue:
    """The scheduler's view of the requests that wait for it."""
    restart_seconds = slot.costs.move(Tier.DISK, Tier.DEVICE) if slot.tier is Tier.HOST else 0.0
    weight = slot.waiters.weight / len(slot.waiters)
    return Queue(slot.name, tuple(slot.waiters.arrivals), slot.switch_seconds(), weight, restart_seconds)


def _makes_room(slot: Slot, place: int) -> float | None:
    """Grant time of the lease whose release admits the request at this position; None if no lease must end first.

    Positions count the held leases, oldest first, then the waiting requests.
    """
    position = place % slot.places
    return slot.let_in[position] if position < len(slot.let_in) else None


def _can_leave_in(slot: Slot, now: float) -> float:
    """Seconds until an expert that is loaded, or being loaded, can have left the device."""
    goes_on = slot.leases + (slot.gate if slot.draining else slot.waiters.leases)
    down, service = slot.costs.move(Tier.DEVICE, slot.idle_tier), slot.costs.service
    last = _makes_room(slot, goes_on - 1) if goes_on else None
    left = ceil(goes_on / slot.places) * service - passed(last, service, now)
    return seconds_left(slot, now) + left + down
