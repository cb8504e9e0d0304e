"""Leases on experts, and the conductor that decides with the pure planner and scheduler. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coe_server.cache.lease import Lease
from coe_server.cache.mover import Mover
from coe_server.cache.planner import Move, Never, NotYet, Plan, plan
from coe_server.cache.scheduler import Queue, seconds_until_pressing, turns
from coe_server.cache.slot import Expert, MoveRecord, Slot, State, Waiter
from coe_server.cache.tiers import Bytes, Ledger, Tier
from coe_server.errors import ExpertUnavailable, Overloaded, UnknownModel
from coe_server.events import EventLog

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the cache promises its callers."""

    max_wait_seconds: float = 30.0
    queue_limit: int = 64  # requests waiting for one expert
    max_concurrency: int = 16  # requests inside one engine


@dataclass(frozen=True, slots=True)
class ExpertStatus:
    """One expert as the router or a person sees it."""

    name: str
    state: State
    residency: str
    held: Bytes
    leases: int
    queued: int
    pin: Tier
    last_move: MoveRecord | None
    failure: str | None
    predicted_wait_seconds: float


class ExpertCache:
    """Experts in three tiers. `lease` waits its turn; one conductor decides all moves."""

    def __init__(
        self,
        experts: Iterable[Expert],
        capacity: Bytes,
        limits: Limits,
        events: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.ledger = Ledger(capacity)
        self.ready = asyncio.Event()  # what is to be preloaded has been
        self.events = events or EventLog()
        self._clock = clock
        self._slots = {expert.name: Slot(expert) for expert in experts}
        self._changed = asyncio.Event()
        self._mover = Mover(self._slots, self.ledger, self.events, clock, self._changed.set)
        self._preloads = self._in_preload_order()
        self._inflation = 0.0  # GreedyDual: the credit of the last expert that had to leave

    async def run(self) -> None:
        """Conduct until cancelled, then put every expert on disk."""
        try:
            while True:
                self._changed.clear()
                self._conduct()
                await self._something_can_have_changed()
        finally:
            await self._mover.put_everything_away()

    async def lease(self, name: str) -> Lease:
        """Wait until the expert is on the device and has room, then hold it there.

        Raises UnknownModel, Overloaded (its queue is full) or ExpertUnavailable (it failed). Cancelling leaves the
        queue; a load that has begun goes on.
        """
        slot = self._slot(name)
        self._refuse_what_cannot_be(slot)
        waiter = Waiter(self._clock(), asyncio.get_running_loop().create_future())
        slot.waiters.append(waiter)
        self._admit(slot)
        self._changed.set()
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            self._forget(slot, waiter)
            raise

    def status(self) -> tuple[ExpertStatus, ...]:
        """Every expert, in the order of the configuration."""
        return tuple(
            ExpertStatus(
                name=slot.name,
                state=slot.state,
                residency=slot.residency,
                held=self.ledger.held(slot.name),
                leases=slot.leases,
                queued=len(slot.waiters),
                pin=slot.expert.pin,
                last_move=slot.last_move,
                failure=slot.failure.reason if slot.failure else None,
                predicted_wait_seconds=self._switch_seconds(slot),
            )
            for slot in self._slots.values()
        )

    # one pass of the conductor: who comes to the device, who drains, who leaves

    def _conduct(self) -> None:
        self._end_cooldowns()
        for slot in self._slots.values():
            slot.draining = False
        for turn in turns(self._queues(), self._clock(), self.limits.max_wait_seconds):
            if not self._take_turn(self._slots[turn.expert], turn.pressing) and turn.overdue:
                break
        for slot in self._slots.values():
            self._admit(slot)
        self._preload()
        self._retire_idle()

    def _take_turn(self, slot: Slot, pressing: bool) -> bool:
        """Begin the expert's way to the device if it can begin now; say whether nothing of the turn is left waiting."""
        match self._plan(slot):
            case Plan() as ready if pressing or not any(self._slots[v].waiters for v in ready.victims):
                slot.gate = len(slot.waiters)
                self._begin(ready)
            case Never(sentence):
                self._refuse_waiters(slot, sentence)
            case NotYet(leaving) if pressing:
                for name in leaving:
                    self._slots[name].draining = True
                return False
            case _:
                return False
        return True

    def _preload(self) -> None:
        """Bring up what should be up, one at a time, while nobody waits and nobody has to leave for it."""
        if self.ready.is_set() or self._queues() or any(slot.moving for slot in self._slots.values()):
            return
        while self._preloads:
            slot = self._slots[self._preloads.pop(0)]
            outcome = self._plan(slot)
            if slot.tier is Tier.DISK and isinstance(outcome, Plan) and len(outcome.moves) == 1:
                then = (Move(slot.name, Tier.DEVICE, Tier.HOST),) if slot.expert.preload is Tier.HOST else ()
                self._begin(Plan(outcome.moves + then))
                return
        self.ready.set()
        logger.info("ready: %s", ", ".join(f"{slot.name} {slot.residency}" for slot in self._slots.values()))

    def _retire_idle(self) -> None:
        now = self._clock()
        for slot in self._slots.values():
            ttl = slot.expert.ttl_seconds
            if ttl is None or slot.busy or slot.waiters or not slot.settled or now - slot.last_used < ttl:
                continue
            lower = Tier.HOST if slot.engine.footprint.can_sleep else Tier.DISK
            if lower.depth <= slot.expert.pin.depth:
                self._begin(Plan((Move(slot.name, Tier.DEVICE, lower),)))

    def _begin(self, plan_: Plan) -> None:
        for name in plan_.victims:
            self._inflation = max(self._inflation, self._slots[name].credit)
            self._slots[name].uses = 0
        self._mover.begin(plan_)

    def _plan(self, slot: Slot) -> Plan | NotYet | Never:
        return plan([other.holding() for other in self._slots.values()], slot.name, self.ledger.capacity)

    def _queues(self) -> tuple[Queue, ...]:
        return tuple(
            Queue(slot.name, tuple(w.arrived for w in slot.waiters), self._switch_seconds(slot))
            for slot in self._slots.values()
            if slot.waiters and slot.moving is None and slot.tier is not Tier.DEVICE
        )

    def _switch_seconds(self, slot: Slot) -> float:
        """Measured seconds until the expert could answer: its own move to the device (0 if it is there)."""
        return 0.0 if slot.tier is Tier.DEVICE else slot.costs.of(slot.tier, Tier.DEVICE)

    async def _something_can_have_changed(self) -> None:
        now = self._clock()
        moments = [seconds_until_pressing(self._queues(), now, self.limits.max_wait_seconds)]
        moments += [slot.failure.until - now for slot in self._slots.values() if slot.failure]
        moments += [
            slot.last_used + slot.expert.ttl_seconds - now
            for slot in self._slots.values()
            if slot.expert.ttl_seconds is not None and slot.settled and not slot.busy
        ]
        soonest = min((m for m in moments if m is not None), default=None)
        try:
            async with asyncio.timeout(None if soonest is None else max(soonest, _SHORTEST_NAP_SECONDS)):
                await self._changed.wait()
        except TimeoutError:
            return

    # the queues in front of the experts

    def _admit(self, slot: Slot) -> None:
        while slot.waiters and slot.admits and slot.leases < self.limits.max_concurrency:
            waiter = slot.waiters.popleft()
            if waiter.granted.done():  # cancelled, and not yet out of the queue
                continue
            slot.gate = max(0, slot.gate - 1)
            waiter.granted.set_result(self._grant(slot, waiter))

    def _grant(self, slot: Slot, waiter: Waiter) -> Lease:
        slot.leases += 1
        slot.uses += 1
        reload_seconds = slot.costs.of(Tier.HOST if slot.engine.footprint.can_sleep else Tier.DISK, Tier.DEVICE)
        slot.credit = self._inflation + slot.uses * reload_seconds / max(slot.engine.footprint.device_awake, 1)
        life = slot.gone

        def give_back() -> None:
            if slot.gone is life:  # else its engine died meanwhile, and with it the lease
                slot.leases -= 1
                slot.failures = 0
            slot.last_used = self._clock()
            self._changed.set()

        return Lease(slot.name, slot.engine, self._clock() - waiter.arrived, life, give_back)

    def _forget(self, slot: Slot, waiter: Waiter) -> None:
        if waiter in slot.waiters:
            slot.waiters.remove(waiter)
            slot.gate = min(slot.gate, len(slot.waiters))
        elif waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
            waiter.granted.result().release()
        self._changed.set()

    def _refuse_what_cannot_be(self, slot: Slot) -> None:
        if slot.failure is not None:
            raise ExpertUnavailable(slot.failure.reason, max(0.0, slot.failure.until - self._clock()))
        if len(slot.waiters) >= self.limits.queue_limit:
            raise Overloaded(
                f"{len(slot.waiters)} requests already wait for expert '{slot.name}'",
                retry_after_seconds=max(1.0, self._switch_seconds(slot)),
            )

    def _refuse_waiters(self, slot: Slot, reason: str) -> None:
        while slot.waiters:
            waiter = slot.waiters.popleft()
            if not waiter.granted.done():
                waiter.granted.set_exception(ExpertUnavailable(reason))

    def _end_cooldowns(self) -> None:
        for slot in self._slots.values():
            if slot.failure is not None:
                self._refuse_waiters(slot, slot.failure.reason)
                if self._clock() >= slot.failure.until:
                    slot.failure = None
                    slot.failures = 0

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            raise UnknownModel(f"there is no expert '{name}'; there are {', '.join(self._slots)}", "model")
        return self._slots[name]

    def _in_preload_order(self) -> list[str]:
        """What only passes through the device goes first, while the device is empty."""
        wanted = [s for s in self._slots.values() if min(s.expert.preload, s.expert.pin, key=_depth) is not Tier.DISK]
        return [s.name for s in sorted(wanted, key=lambda s: -s.expert.preload.depth)]


def _depth(tier: Tier) -> int:
    return tier.depth


_SHORTEST_NAP_SECONDS = 0.001  # a timer that is due is given a moment, so that the loop breathes
