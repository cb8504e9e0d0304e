"""Leases on experts: who may use which expert when. The conductor decides all moves; nothing here knows HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

from coe_server.cache.conductor import Conductor
from coe_server.cache.health import Deaths
from coe_server.cache.mover import Mover
from coe_server.cache.planner import Move, Plan, left_out, pinned
from coe_server.cache.prefetch import Guess, Guesses
from coe_server.cache.queue import Lease, LeaseActs, Owner, Priority, WaitedFor, Waiter
from coe_server.cache.scheduler import OURS, Limits, Policy
from coe_server.cache.slot import Expert, Slot, new_slot
from coe_server.cache.status import ExpertStatus, Overview
from coe_server.cache.tiers import Bytes, Ledger, Tier
from coe_server.cache.wait_times import Waits
from coe_server.errors import ExpertBusy, ExpertUnavailable, NoRoom, Overloaded, UnknownModel
from coe_server.events import EventLog


class ExpertCache:
    """Experts in three tiers. `lease` waits its turn, at most as long as the bound that `waits` gives."""

    def __init__(
        self,
        experts: Iterable[Expert],
        capacity: Bytes,
        limits: Limits,
        events: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: Policy = OURS,
        one_move_at_a_time: bool = False,
    ) -> None:
        self.limits = limits
        self.ledger = Ledger(capacity)
        self.events = events or EventLog()
        self._clock = clock
        self._policy = policy
        changes: dict[str, None] = {}
        self._slots = {expert.name: new_slot(expert, limits.max_wait_seconds, changes) for expert in experts}
        self._waited_for = WaitedFor()
        self._closing = False
        self._changed = asyncio.Event()
        mover = self._mover = Mover(
            self._slots,
            self.ledger,
            self.events,
            clock,
            self._changed.set,
            one_move_at_a_time,
        )
        self._deaths = Deaths(self._slots, mover, self._changed.set, limits.sign_of_life_seconds)
        overview = Overview(self._slots, changes, policy, limits, capacity)
        self._conductor = Conductor(
            self._slots,
            overview,
            mover,
            self.events,
            capacity,
            limits,
            policy,
            clock,
            admit=self._admit,
            changed=self._changed,
        )
        self.waits = Waits(self._slots, overview, capacity, limits, clock)

    @property
    def ready(self) -> asyncio.Event:
        """Set once everything that is to be preloaded has been."""
        return self._conductor.ready

    @property
    def guesses(self) -> Guesses:
        """What was done before anybody asked for it, and whether it was useful."""
        return self._conductor.guesses

    async def run(self) -> None:
        """Move experts as requests need them until cancelled, then put every expert on disk."""
        try:
            await self._conductor.run()
        finally:
            self.stop_admitting()
            await self._mover.put_everything_away()

    def stop_admitting(self) -> None:
        """Refuse everybody who waits and everybody who comes from now on; who holds a lease may finish."""
        self._closing = True
        for slot in self._slots.values():
            slot.waiters.refuse_all(_CLOSING)

    async def lease(
        self, name: str, priority: Priority = "normal", fan_out: int = 1, owner: Owner | None = None
    ) -> Lease:
        """Wait until the expert is on the device and has room for that many answers, then hold it there.

        A request that asks for more answers than an engine has room for takes all of it. Raises UnknownModel,
        Overloaded (a queue is full) or ExpertUnavailable (it failed). Cancelling leaves the queue; a load that has
        begun goes on.
        """
        slot, leases = self._slot(name), self._leases(fan_out)
        self._refuse_what_cannot_be(slot)
        self._refuse_what_finds_no_room(slot, leases, owner)
        self.waits.saw(leases)
        self._conductor.demand.note(name, self._clock())
        self.guesses.end(Guess.ROOM, name, self.guesses.wasted)
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        waiter = slot.waiters.join(self._clock(), priority, granted, leases, owner)
        is_try = slot.backoff.begin_try()
        self._waited_for.add(leases, owner)
        self._admit(slot)
        if not granted.done():
            self._changed.set()
        try:
            lease = await granted
            lease.is_try = is_try
            return lease
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self._forget(slot, waiter)
            if is_try:
                slot.backoff.end_try()
            raise
        finally:
            self._waited_for.add(-leases, owner)

    def grants_at_once(self, name: str, fan_out: int = 1) -> bool:
        """Whether a lease that is asked for now does not have to wait."""
        slot = self._slot(name)
        has_room = slot.admits and slot.leases + self._leases(fan_out) <= self.limits.max_concurrency
        return has_room and not slot.waiters and self._policy.collates

    def _leases(self, fan_out: int) -> int:
        """What a request takes that asks for so many answers; an engine that it has to itself makes them in turn."""
        return min(fan_out, self.limits.max_concurrency)

    def count_failure(self, name: str, cause: str, at_once: bool, asked_seconds: float | None = None) -> None:
        """An expert that is answered elsewhere gave no answer, for that reason, and asked to be left alone for so long.

        The engines that run here have health checks instead: of them nothing is counted.
        """
        slot = self._slot(name)
        if slot.expert.remote:
            self._mover.count_remote_failure(slot, cause, at_once, asked_seconds)

    def end_try(self, name: str) -> None:
        """The request that tried an expert after its backoff is over, and said nothing of it."""
        self._slot(name).backoff.end_try()

    def departure_of(self, name: str) -> asyncio.Event:
        """Set when the expert has left the device, the next time it does."""
        return self._slot(name).left

    async def load(self, name: str) -> None:
        """Bring an expert to the device, waiting its turn like a request. One that failed is tried again at once."""
        slot = self._slot(name)
        slot.backoff.forgive()
        if slot.failure is not None:
            slot.change(failure=None)
            slot.restarts.forgive()
        (await self.lease(name)).release()

    def unload(self, name: str) -> None:
        """Send an idle expert to disk. Raises ExpertBusy if it is used, waited for, moving, pinned or elsewhere."""
        slot = self._slot(name)
        if (why := _why_it_stays(slot)) is not None:
            raise ExpertBusy(f"expert '{name}' {why}; it stays where it is")
        if slot.tier is not Tier.DISK:
            self._conductor.begin(Plan((Move(name, slot.tier, Tier.DISK),)))

    def pin(self, name: str, tier: Tier) -> None:
        """From now on the expert never leaves for below `tier` (`disk`: no pin). If it is below, it comes up when
        nobody waits, and idle experts leave for it. Raises ExpertBusy for an expert that is answered elsewhere or never
        in that tier, NoRoom if it or another one could never come to the device any more."""
        slot = self._slot(name)
        if slot.expert.remote:
            raise ExpertBusy(f"expert '{name}' is answered elsewhere; there is nothing to pin")
        if tier is Tier.HOST and slot.resting_tier is not Tier.HOST:
            raise ExpertBusy(f"expert '{name}' never sleeps in host memory; pin it to the device, or to disk (no pin)")
        if tier.depth < slot.pin.depth:
            self._refuse_to_leave_out(name, tier)
        slot.change(pin=tier)
        self._changed.set()

    def _refuse_to_leave_out(self, name: str, pin: Tier) -> None:
        pins = {one.name: one.pin for one in self._slots.values()} | {name: pin}
        at_their_pins = (pinned(one.name, one.engine.footprint, pins[one.name]) for one in self._slots.values())
        for why in left_out(at_their_pins, self.ledger.capacity).values():
            raise NoRoom(f"expert '{name}' is not pinned to {pin}: {why}, this one among them")

    def status(self) -> tuple[ExpertStatus, ...]:
        """Every expert, in the order of the configuration."""
        outlooks = self.waits.outlooks()
        return tuple(
            ExpertStatus.of(slot, outlooks[slot.name], self.ledger.held(slot.name)) for slot in self._slots.values()
        )

    def measured_costs(self) -> dict[str, dict[str, float]]:
        """Expert -> kind of cost -> seconds, as measured so far; `Expert.costs` takes them back."""
        return {slot.name: slot.costs.measured for slot in self._slots.values()}

    def _admit(self, slot: Slot) -> None:
        while (first := slot.waiters.first()) is not None and slot.admits:
            if slot.leases + first.leases > self.limits.max_concurrency:
                self._hold_the_door(slot, first)
                return
            if not self._policy.collates and self._somebody_came_earlier(slot):
                return
            waiter = slot.waiters.pop()
            if waiter.granted.done():  # cancelled, and not yet out of the queue
                continue
            slot.change(gate=max(0, slot.gate - waiter.leases))
            waiter.granted.set_result(self._grant(slot, waiter))
            if not self._policy.collates:  # in strict order somebody else may be next
                self._changed.set()

    def _hold_the_door(self, slot: Slot, first: Waiter) -> None:
        """What needs room for several would never find it if others went in before, one by one."""
        if first.leases > 1:
            slot.waiters.keep_first()

    def _somebody_came_earlier(self, slot: Slot) -> bool:
        """In strict order of arrival nobody is served before an older request for another expert."""
        oldest = min(waiter.arrived for waiter in slot.waiters)
        return any(
            other is not slot and any(waiter.arrived < oldest for waiter in other.waiters)
            for other in self._slots.values()
        )

    def _grant(self, slot: Slot, waiter: Waiter) -> Lease:
        granted, life = self._clock(), slot.gone
        slot.use(granted, waiter.leases)
        self.guesses.end(Guess.DEVICE, slot.name, self.guesses.useful)
        acts = LeaseActs(
            give_back=partial(self._give_back, slot, life, granted, waiter.leases),
            suspect=partial(self._suspect, slot, life),
            is_alive=partial(self._is_alive, slot, life),
            speaks=partial(slot.backoff.speak, granted),
            answered=partial(self._answered, slot, life, granted),
        )
        return Lease(slot.name, slot.engine, granted - waiter.arrived, life, acts, mortal=not slot.expert.remote)

    def _give_back(self, slot: Slot, life: asyncio.Event, granted: float, leases: int) -> None:
        if slot.gone is life:  # else its engine died meanwhile, and with it the lease
            slot.end_use(granted, leases)
        slot.change(last_used=self._clock())
        self._admit(slot)
        frees_room = slot.leases == 0 and not slot.expert.remote  # while others use it, nothing comes of this one's end
        if frees_room or not self._policy.collates:
            self._changed.set()

    def _suspect(self, slot: Slot, life: asyncio.Event) -> None:
        if slot.gone is life:
            self._deaths.examine(slot)

    async def _is_alive(self, slot: Slot, life: asyncio.Event) -> bool:
        return slot.gone is life and await asyncio.shield(self._deaths.examine(slot))

    def _answered(self, slot: Slot, life: asyncio.Event, granted: float) -> None:
        if slot.gone is life:
            slot.restarts.answer()
            slot.backoff.answer(granted)
            slot.costs.learn_service(self._clock() - granted)

    def _forget(self, slot: Slot, waiter: Waiter) -> None:
        if slot.waiters.leave(waiter):
            slot.change(gate=min(slot.gate, slot.waiters.leases))
        elif waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
            waiter.granted.result().release()
        self._changed.set()

    def _refuse_what_cannot_be(self, slot: Slot) -> None:
        if self._closing:
            raise ExpertUnavailable(_CLOSING)
        if slot.failure is not None:
            raise ExpertUnavailable(slot.failure.reason, max(0.0, slot.failure.until - self._clock()))
        if (refusal := slot.backoff.refusal(self._clock())) is not None:
            seconds = slot.backoff.seconds_left(self._clock())
            raise ExpertUnavailable(f"expert '{slot.name}' is {refusal}", seconds)

    def _refuse_what_finds_no_room(self, slot: Slot, leases: int, owner: Owner | None) -> None:
        """A full queue takes nothing, a half full one nothing of an owner that has its share in it."""
        line, limits = slot.waiters, self.limits
        if line.waited_for.is_full(leases, limits.queue_limit):
            already = f"{len(line)} requests already wait for expert '{slot.name}'"
            raise self._overloaded(f"{already}, for {line.leases} answers", "queue_limit", slot)
        if self.grants_at_once(slot.name, leases):
            return
        if self._waited_for.is_full(leases, limits.queue_limit_total):
            already = f"{sum(len(one.waiters) for one in self._slots.values())} requests already wait"
            raise self._overloaded(f"{already}, for {self._waited_for.leases} answers", "queue_limit_total", slot)
        for queue, limit in ((line.waited_for, "queue_limit"), (self._waited_for, "queue_limit_total")):
            if owner is not None and queue.is_over_share(leases, getattr(limits, limit), owner):
                already = f"key '{owner.name}' already waits for {queue.by(owner)} answers, its share"
                raise self._overloaded(already, limit, slot)

    def _overloaded(self, already: str, limit: str, slot: Slot) -> Overloaded:
        sentence = f"{already} of {getattr(self.limits, limit)} (scheduling.{limit})"
        return Overloaded(sentence, self.waits.predicted_seconds(slot.name))

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            raise UnknownModel(f"there is no expert '{name}'; there are {', '.join(self._slots)}", "model")
        return self._slots[name]


def _why_it_stays(slot: Slot) -> str | None:
    """Why an operator cannot send it to disk now; None if they can."""
    reasons = {
        "is answered elsewhere": slot.expert.remote,
        f"is pinned to {slot.pin} (unpin it first)": slot.pin is not Tier.DISK,
        "is moving": slot.moving is not None,
        f"is in use by {slot.leases} requests": slot.leases > 0,
        f"is waited for by {len(slot.waiters)} requests": bool(slot.waiters),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


_CLOSING = "the server is stopping"
