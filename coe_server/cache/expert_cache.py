"""Grants leases on experts to requests. The conductor decides all moves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from coe_server.cache.admission import Admission
from coe_server.cache.conductor import Conductor
from coe_server.cache.health import Failures, Health
from coe_server.cache.mover import Mover, Tasks
from coe_server.cache.overview import Overview
from coe_server.cache.pins import left_out, seated
from coe_server.cache.planner import Plan
from coe_server.cache.policy import OURS, Limits, Policy, on_cards
from coe_server.cache.prefetch import Guess, Guesses
from coe_server.cache.queue import Lease, Owner, Priority, WaitedFor
from coe_server.cache.slot import Expert, Slot, Slots, at_its_pin, new_slot
from coe_server.cache.status import ExpertStatus
from coe_server.cache.tiers import Bytes, Ledger, Tier
from coe_server.cache.turnover import Roster, Turnover
from coe_server.cache.wait_bound import WaitBounds
from coe_server.cache.wait_times import Waits
from coe_server.errors import ExpertBusy, ExpertUnavailable, NoRoom, Overloaded, UnknownModel
from coe_server.events import EventLog

logger = logging.getLogger(__name__)


class ExpertCache:
    """Experts in three tiers. `lease` waits for a turn, at most `bounds.seconds()`."""

    def __init__(
        self,
        experts: Iterable[Expert],
        capacity: Bytes,
        limits: Limits,
        events: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: Policy = OURS,
        one_move_at_a_time: bool = False,
        bases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        policy = on_cards(policy, len(capacity.cards))
        self.limits = limits
        self.ledger = Ledger(capacity)
        self.events = events = events or EventLog()
        self._clock = clock
        changes: dict[str, None] = {}
        made = ((one.name, new_slot(one, limits, changes)) for one in experts)
        self.slots = slots = Slots(made, bases)
        _place_pinned(slots, capacity)
        self._waited_for = WaitedFor()
        self._closing = False
        self._changed = changed = asyncio.Event()
        tasks, self.failures, self.guesses = Tasks(), Failures(events, clock), Guesses()
        self._mover = Mover(
            *(slots, self.ledger, events, self.failures, tasks, clock, changed.set, self.lose_card),
            one_at_a_time=one_move_at_a_time,
        )
        self._health = Health(slots, self._mover, self.failures, tasks, changed.set, limits.probe_timeout_seconds)
        overview = Overview(slots, changes, policy, limits, self.ledger)
        self.waits = Waits(slots, overview, clock)
        self.bounds = WaitBounds(slots, self.ledger, limits)
        self._admission = Admission(slots, policy, self.guesses, self._health, clock, changed)
        self._conductor = Conductor(
            slots,
            overview,
            self._mover,
            events,
            self.ledger,
            limits,
            policy,
            clock,
            admit=self._admission.admit,
            changed=changed,
            guesses=self.guesses,
            turn_over=lambda: self._roster.turn_over(self._conductor),
        )
        self._roster = Roster(
            *(slots, changes, limits, events, self.guesses, clock, tasks, self._health),
            placed=lambda: _place_pinned(slots, self.ledger.capacity),
            changed=changed,
        )
        self.ready = self._conductor.ready  # set once preloading is done

    async def run(self) -> None:
        """Move experts as requests need them until cancelled, then stop every engine."""
        self._health.watch()
        try:
            await self._conductor.run()
        finally:
            self.stop_admitting()
            await self._mover.put_everything_away()

    def stop_admitting(self) -> None:
        """Refuse waiting and new requests; requests that hold a lease may finish."""
        self._closing = True
        for slot in self.slots.values():
            slot.waiters.refuse_all(_CLOSING)

    @property
    def closing(self) -> bool:
        """True once nothing new is admitted, because the server stops."""
        return self._closing

    def take_over(self, turnover: Turnover) -> None:
        """Let experts come, change and go. New names are accepted from now on; those that change or go finish first
        what was asked of them, and no other expert is touched. Raises NoRoom; then nothing has changed.
        """
        self._roster.take_over(turnover, self._conductor, self.ledger.capacity)

    def add(self, expert: Expert) -> None:
        """Add an expert of nodes. It has no process here, so it is on the device at once."""
        assert expert.on_nodes, "an expert with a process here comes by `take_over`, which sees that it fits"
        self._roster.add(expert, self._conductor)

    def remove(self, name: str) -> None:
        """Remove an expert of nodes that none of them has any more."""
        self._roster.remove(name, self._conductor)

    async def lease(
        self, name: str, priority: Priority = "normal", fan_out: int = 1, owner: Owner | None = None
    ) -> Lease:
        """Wait until the expert is on the device with room for that many answers, then keep it there until release.

        A request for more answers than an engine's concurrency takes all of it. Raises UnknownModel,
        Overloaded (a queue is full) or ExpertUnavailable (it failed). Cancelling leaves the queue; a load that has
        begun goes on.
        """
        slot, now = self.slots.present(name), self._clock()
        leases = min(fan_out, slot.places)
        if self._closing:
            raise ExpertUnavailable(_CLOSING)
        _refuse_while_it_fails(slot, now)
        self._refuse_what_finds_no_room(slot, leases, owner)
        self.bounds.saw(leases)
        if not slot.expert.on_nodes:  # its nodes prefetch it
            self._conductor.demand.note(slot.name, now)
        self.guesses.end(Guess.ROOM, slot.name, self.guesses.wasted)
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        waiter = slot.waiters.join(now, priority, granted, leases, owner)
        is_try = slot.backoff.begin_try()
        self._waited_for.add(leases, owner)
        self._admission.admit(slot)
        if not granted.done():
            self._changed.set()
        try:
            lease = await granted
            lease.is_try = is_try
            return lease
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self._admission.forget(slot, waiter)
            if is_try:
                slot.backoff.end_try()
            raise
        finally:
            self._waited_for.add(-leases, owner)

    @contextmanager
    def foreseen(self, name: str, chance: float) -> Iterator[None]:
        """While this context lasts, the expert is asked for soon with this probability: it may be prefetched."""
        slot = self.slots.get(name)
        if slot is None or slot.expert.remote or slot.expert.on_nodes or slot.tier is Tier.DEVICE:
            yield
            return
        demand = self._conductor.demand
        demand.foresee(slot.name, chance)
        self._changed.set()
        try:
            yield
        finally:
            demand.foresee(slot.name, -chance)

    def grants_at_once(self, name: str, fan_out: int = 1) -> bool:
        """True if a lease would be granted without waiting."""
        slot = self.slots[name]
        return self._admission.has_room(slot, min(fan_out, slot.places))

    def may_wait(self, name: str, owner: Owner | None = None) -> bool:
        """False if a request for this expert would be refused now because a queue is full."""
        try:
            self._refuse_what_finds_no_room(self.slots[name], 1, owner)
        except (UnknownModel, Overloaded):  # it may have been removed
            return False
        return True

    async def load(self, name: str) -> None:
        """Load an expert onto the device, in turn like a request. A failed expert is tried again at once."""
        slot = self._served(name)
        slot.backoff.forgive()
        if slot.failure is not None:
            slot.change(failure=None)
            slot.restarts.forgive()
        (await self.lease(name)).release()

    async def restart(self, name: str) -> None:
        """Stop an expert's engine after its answers in progress, and start it again. Requests that come meanwhile wait.

        Raises ExpertBusy for a remote expert or one that shares an engine. The start is in turn, as for a request.
        """
        self._require_own_slot(name)
        slot = self._served(name)
        if slot.expert.remote:
            raise ExpertBusy(f"expert '{name}' is remote: it has no engine here to restart")
        if slot.tier is not Tier.DISK or slot.moving is not None:
            self._conductor.restart(slot)
        await self.load(name)

    def unload(self, name: str) -> None:
        """Evict an idle expert to disk. Raises ExpertBusy if it is leased, requested, moving, pinned or remote."""
        self._require_own_slot(name)
        slot = self.slots[name]
        if (why := _why_it_stays(slot)) is not None:
            raise ExpertBusy(f"expert '{name}' cannot be evicted: it {why}")
        if slot.tier is not Tier.DISK:
            self._conductor.begin(Plan((slot.move_to(Tier.DISK),)))

    def pin(self, name: str, tier: Tier) -> None:
        """Keep the expert in `tier` or above from now on (`disk`: no pin).

        An expert below its pin is loaded when no request waits; idle experts are evicted for it. Raises ExpertBusy for
        a remote expert or one that is never in that tier, NoRoom if some expert could never be loaded any more.
        """
        self._require_own_slot(name)
        slot = self.slots[name]
        if slot.expert.remote:
            raise ExpertBusy(f"expert '{name}' is remote and cannot be pinned")
        if tier is Tier.HOST and slot.idle_tier is not Tier.HOST:
            raise ExpertBusy(f"expert '{name}' never sleeps in host memory; pin it to the device, or to disk (no pin)")
        if tier.depth < slot.pin.depth:
            _refuse_to_leave_out(self.slots, name, tier, self.ledger.capacity)
        slot.change(pin=tier)
        _place_pinned(self.slots, self.ledger.capacity)
        self._changed.set()

    def lose_card(self, card: int) -> None:
        """Take a failed card out of service: its experts are stopped, their leases lost, none is loaded there again."""
        logger.error("card %d is lost: its experts are stopped and start on other cards, if they fit there", card)
        self.ledger.lose(card)
        _place_pinned(self.slots, self.ledger.capacity, moved_from=card)
        self._conductor.lose_card(card)
        self._changed.set()

    def status(self) -> tuple[ExpertStatus, ...]:
        """Every expert, in the order of the configuration."""
        outlooks = self.waits.outlooks()
        return tuple(
            ExpertStatus.of(slot, outlooks[slot.name], self.ledger.held(slot.name)) for slot in self.slots.values()
        )

    def measured_costs(self) -> dict[str, dict[str, float]]:
        """Expert -> kind of cost -> measured seconds, in the form of `Expert.costs`."""
        return {slot.name: slot.costs.measured for slot in self.slots.values()}

    def _served(self, name: str) -> Slot:
        """The slot of an expert that is there and stays. Raises UnknownModel."""
        slot = self.slots.present(name)
        if slot.leaves:
            raise self.slots.unknown(name)
        return slot

    def _require_own_slot(self, name: str) -> None:
        self._served(name)
        if (base := self.slots.bases.get(name)) is not None:
            raise ExpertBusy(f"expert '{name}' shares the engine of its base; ask for '{base}'")

    def _refuse_what_finds_no_room(self, slot: Slot, leases: int, owner: Owner | None) -> None:
        """Raise Overloaded if the queue is full, or half full and the owner already has its share of it."""
        line, limits, already, limit = slot.waiters, self.limits, None, "queue_limit"
        if line.waited_for.is_full(leases, limits.queue_limit):
            already = f"{len(line)} requests already wait for expert '{slot.name}', for {line.leases} answers"
        elif self._admission.has_room(slot, leases):
            return
        elif self._waited_for.is_full(leases, limits.queue_limit_total):
            requests = sum(len(one.waiters) for one in self.slots.values())
            already, limit = (
                f"{requests} requests already wait, for {self._waited_for.leases} answers",
                "queue_limit_total",
            )
        elif owner is not None:
            for queue, limit in ((line.waited_for, "queue_limit"), (self._waited_for, "queue_limit_total")):
                if queue.is_over_share(leases, getattr(limits, limit), owner):
                    already = f"key '{owner.name}' already waits for {queue.by(owner)} answers, its share"
                    break
        if already is not None:
            sentence = f"{already} of {getattr(limits, limit)} (scheduling.{limit})"
            raise Overloaded(sentence, self.waits.predicted_seconds(slot.name))


def _refuse_while_it_fails(slot: Slot, now: float) -> None:
    if slot.failure is not None:
        raise ExpertUnavailable(slot.failure.reason, max(0.0, slot.failure.until - now))
    if (refusal := slot.backoff.refusal(now)) is not None:
        raise ExpertUnavailable(f"expert '{slot.name}' is {refusal}", slot.backoff.seconds_left(now))


def _refuse_to_leave_out(slots: Mapping[str, Slot], name: str, pin: Tier, capacity: Bytes) -> None:
    at_their_pins = [at_its_pin(one, pin if one.name == name else one.pin) for one in slots.values()]
    for why in left_out(at_their_pins, capacity).values():
        raise NoRoom(f"expert '{name}' is not pinned to {pin}: {why}, this one among them")


def _place_pinned(slots: Mapping[str, Slot], capacity: Bytes, moved_from: int | None = None) -> None:
    """Assign each pinned expert one seat, so that all fit together; other experts may use any of their seats."""
    placed = seated([at_its_pin(slot, slot.pin, moved_from) for slot in slots.values()], capacity)
    for slot, holding in zip(slots.values(), placed, strict=True):
        seats = slot.expert.seats if slot.pin is Tier.DISK or slot.expert.remote else holding.seats
        if seats != slot.seats:
            slot.change(seats=seats)


def _why_it_stays(slot: Slot) -> str | None:
    """Why an operator cannot evict it now; None if it can be evicted."""
    reasons = {
        "is remote": slot.expert.remote,
        f"is pinned to {slot.pin} (unpin it first)": slot.pin is not Tier.DISK,
        "is moving": slot.moving is not None,
        f"is in use by {slot.leases} requests": slot.leases > 0,
        f"has {len(slot.waiters)} waiting requests": bool(slot.waiters),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


_CLOSING = "the server is stopping"
