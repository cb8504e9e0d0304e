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
from coe_server.cache.controls import Controls
from coe_server.cache.demand import Demand
from coe_server.cache.health import Failures, Health
from coe_server.cache.mover import Mover
from coe_server.cache.moves import Moves, Tasks
from coe_server.cache.outlooks import Waits
from coe_server.cache.overview import Overview
from coe_server.cache.policy import OURS, Limits, Policy, on_cards
from coe_server.cache.prefetch import Guess, Guesses
from coe_server.cache.queue import Lease, Owner, Priority, WaitedFor
from coe_server.cache.slot import Expert, Slot, Slots, new_slot, place_pinned
from coe_server.cache.status import ExpertStatus
from coe_server.cache.tiers import Bytes, Ledger, Tier
from coe_server.cache.turnover import Roster
from coe_server.cache.upkeep import Prefetching, Upkeep
from coe_server.cache.wait_bound import WaitBounds
from coe_server.errors import ExpertUnavailable, Overloaded, UnknownModel
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
        place_pinned(slots, capacity)
        self.closing = False  # true once nothing new is admitted, because the server stops
        self._waited_for = WaitedFor()
        self._changed = changed = asyncio.Event()
        tasks, self.failures, self.guesses = Tasks(), Failures(events, clock), Guesses()
        self._demand = Demand(slots)
        overview = Overview(slots, changes, policy)
        upkeep = Upkeep(slots, overview, self.ledger, policy)
        moves = Moves(slots, self.ledger, events, self.failures, tasks, clock, self.lose_card, one_move_at_a_time)
        self._mover = mover = Mover(slots, moves, tasks, changed.set)
        self._health = health = Health(slots, overview, mover, self.failures, tasks, limits.probe_timeout_seconds)
        self.waits = Waits(slots, overview, self.ledger, limits, policy, clock)
        self.bounds = WaitBounds(slots, self.ledger, limits)
        self._admission = Admission(slots, policy, self.guesses, health, clock, changed)
        self.roster = Roster(
            *(slots, changes, limits, self.ledger, events, clock, tasks, health),
            *(self._demand, self.guesses, upkeep, changed),
        )
        self._conductor = Conductor(
            slots,
            overview,
            mover,
            events,
            self.ledger,
            limits,
            policy,
            clock,
            admit=self._admission.admit,
            changed=changed,
            upkeep=upkeep,
            prefetching=Prefetching(slots, overview, self.ledger, mover, self._demand, self.guesses),
            turn_over=self.roster.turn_over,
        )
        self.controls = Controls(slots, self.ledger, self._conductor, changed, self.lease)
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
        self.closing = True
        for slot in self.slots.values():
            slot.waiters.refuse_all(_CLOSING)

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
        if self.closing:
            raise ExpertUnavailable(_CLOSING)
        _refuse_while_it_fails(slot, now)
        self._refuse_what_finds_no_room(slot, leases, owner)
        self.bounds.saw(leases)
        if not slot.expert.on_nodes:  # its nodes prefetch it
            self._demand.note(slot.name, now)
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
        self._demand.foresee(slot.name, chance)
        self._changed.set()
        try:
            yield
        finally:
            self._demand.foresee(slot.name, -chance)

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

    def lose_card(self, card: int) -> None:
        """Take a failed card out of service: its experts are stopped, their leases lost, none is loaded there again."""
        logger.error("card %d is lost: its experts are stopped and start on other cards, if they fit there", card)
        self.ledger.lose(card)
        place_pinned(self.slots, self.ledger.capacity, moved_from=card)
        self._conductor.lose_card(card)
        self._changed.set()

    def status(self) -> tuple[ExpertStatus, ...]:
        """Every expert, in the order of the configuration."""
        outlooks = self.waits.outlooks()
        return tuple(
            ExpertStatus.of(slot, outlooks[slot.name], self.ledger.held(slot.name)) for slot in self.slots.values()
        )

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


_CLOSING = "the server is stopping"
