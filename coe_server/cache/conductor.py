"""Turns the scheduler's orders into moves, and keeps what should be up up. Decides nothing that is not pure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

from coe_server.cache.mover import Mover
from coe_server.cache.planner import Move, Never, NotYet, Plan, plan
from coe_server.cache.prefetch import Demand, Guess, Guesses, prefetch
from coe_server.cache.scheduler import (
    INFINITY,
    Limits,
    Policy,
    Queue,
    conduct,
    seconds_until_pressing,
    seconds_until_tenured,
)
from coe_server.cache.slot import Slot
from coe_server.cache.status import Overview
from coe_server.cache.tiers import Bytes, Tier
from coe_server.events import EventLog

logger = logging.getLogger(__name__)


class Conductor:
    """The one task that orders moves. `admit` is called for experts whose queue may go on."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        overview: Overview,
        mover: Mover,
        events: EventLog,
        capacity: Bytes,
        limits: Limits,
        policy: Policy,
        clock: Callable[[], float],
        admit: Callable[[Slot], None],
        changed: asyncio.Event,
        guesses: Guesses,
    ) -> None:
        self.ready = asyncio.Event()  # what is to be preloaded has been
        self.demand = Demand(slots)
        self.guesses = guesses
        self._slots = slots
        self._mover = mover
        self._events = events
        self._capacity = capacity
        self._limits = limits
        self._policy = policy
        self._clock = clock
        self._admit = admit
        self._changed = changed  # set by whoever does something that may call for new orders
        self._preloads = self._in_preload_order()
        self._overview = overview
        self._coming: Slot | None = None  # on a guess
        self._draining: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Conduct until cancelled."""
        while True:
            self._changed.clear()
            began = self._clock()
            self._conduct()
            await self._something_can_have_changed(since=began)

    def begin(self, plan_: Plan) -> None:
        """Start a plan; the expert it brings admits at least those who wait for it now."""
        victims = plan_.victims
        goal = self._slots[plan_.moves[-1].expert]
        goal.change(gate=goal.waiters.leases if self._policy.collates else _oldest(goal), pushed_out=False)
        for name in victims:
            self._slots[name].change(pushed_out=name != goal.name)
        if any(move.target is Tier.DEVICE for move in plan_.moves):
            for name in self.guesses.open(Guess.ROOM):
                self.guesses.end(Guess.ROOM, name, self.guesses.useful)
            if pushed := [name for name in victims if name != goal.name]:
                self._events.record("switch", expert=goal.name, victims=pushed, waiting=len(goal.waiters))
        self._mover.begin(plan_)

    def plan_for(self, slot: Slot) -> Plan | NotYet | Never:
        """What it would take to bring this expert to the device now."""
        return plan(self._overview.standing, self._overview.holding(slot), self._capacity)

    def _conduct(self) -> None:
        self._end_cooldowns()
        self._end_guesses()
        self._follow_orders(self._overview.queues())
        for slot in self._overview.at_hand:
            self._admit(slot)
        self._keep_up()
        self._give_up_for_who_waits()
        if self.ready.is_set():
            self._prefetch()
        self._retire_idle()

    def _follow_orders(self, queues: tuple[Queue, ...]) -> None:
        if not queues:
            self._let_drain(frozenset())
            return
        seen = self._overview
        orders = conduct(
            seen.standing, queues, self._capacity, self._clock(), self._limits, self._policy, seen.starting
        )
        self._let_drain(orders.draining)
        for name in orders.staying:
            self._slots[name].change(gate=self._slots[name].waiters.leases)
        for expert, sentence in orders.never.items():
            self._slots[expert].waiters.refuse_all(sentence)
        for ready in orders.plans:
            self.begin(ready)

    def _let_drain(self, names: frozenset[str]) -> None:
        for name in names | self._draining:
            if self._slots[name].draining is not (name in names):
                self._slots[name].change(draining=name in names)
        self._draining = names

    def _keep_up(self) -> None:
        """Bring up what is to be preloaded, or is below its pin, one at a time while nobody waits or has to leave."""
        if not self._overview.calm:
            return
        if self._preload_the_next():
            return
        if not self.ready.is_set():
            self.ready.set()
            logger.info("ready: %s", ", ".join(f"{slot.name} {slot.residency}" for slot in self._slots.values()))
        if not self._overview.anyone_is_below_a_pin:
            return
        for slot in self._slots.values():
            if slot.tier.depth > slot.pin.depth and slot.failure is None and self._bring_up(slot):
                return

    def _preload_the_next(self) -> bool:
        """Begin to bring up the next of those to be preloaded that there is room for; False if there is none."""
        while self._preloads:
            slot = self._slots[self._preloads.pop(0)]
            if self._bring_up(slot):
                return True
            if slot.tier.depth > slot.expert.preload.depth:
                logger.warning("expert '%s' was not preloaded: there is no room for it now", slot.name)
        return False

    def _bring_up(self, slot: Slot) -> bool:
        """Begin an expert's way to the tier it should be in; False if it is there or there is no room.

        For a pin somebody idle leaves, for a preload nobody does.
        """
        goal = min(slot.expert.preload, slot.pin, key=lambda tier: tier.depth)
        if slot.tier.depth <= goal.depth:
            return False
        outcome = self.plan_for(slot)
        if not isinstance(outcome, Plan):
            return False
        if len(outcome.moves) > 1:
            if slot.tier.depth <= slot.pin.depth:
                return False
            goal = slot.pin
        then = (Move(slot.name, Tier.DEVICE, Tier.HOST),) if goal is Tier.HOST else ()
        self.begin(Plan(outcome.moves + then))
        return True

    def _end_guesses(self) -> None:
        """An expert that came on a guess and has left again without a request came for nothing."""
        for name in self.guesses.open(Guess.DEVICE):
            if self._slots[name].moving is None and self._slots[name].tier is not Tier.DEVICE:
                self.guesses.end(Guess.DEVICE, name, self.guesses.wasted)

    def _give_up_for_who_waits(self) -> None:
        """A start on a guess is given up once a request waits for another expert; a wake is over at once."""
        if self._coming is not None and self._coming.moving is None:
            self._coming = None
        coming = self._coming
        if coming is not None and self._overview.anyone_waits and not coming.waiters and coming.tier is Tier.DISK:
            self._mover.give_up(coming)
            self._coming = None

    def _prefetch(self) -> None:
        """Make the next switch shorter, while no request waits and nothing moves."""
        if not self._limits.prefetch or not self._overview.calm:
            return
        here, away = self._overview.prospects()
        free = self._capacity - self._overview.standing.used
        way = prefetch(here.values(), away, self.demand.chances(self._clock()), free)
        if way is None:
            return
        goal, target = self._slots[way.moves[-1].expert], way.moves[-1].target
        self.begin(way)
        if target is Tier.DEVICE:
            self._coming = goal
            self.guesses.begin(Guess.DEVICE, goal.name)
        else:
            goal.change(pushed_out=True)  # it may come back on a guess, too
            self.guesses.begin(Guess.ROOM, goal.name)

    def _retire_idle(self) -> None:
        now = self._clock()
        for slot in self._overview.settled:
            if (ends := self._idle_until(slot)) is None or now < ends:
                continue
            self.begin(Plan((Move(slot.name, Tier.DEVICE, slot.resting_tier),)))

    def _idle_until(self, slot: Slot) -> float | None:
        """When it will have been idle for its ttl; None while it is used, has none, or may not leave."""
        ttl = slot.expert.ttl_seconds
        if ttl is None or slot.resting_tier.depth > slot.pin.depth or slot.busy or slot.waiters or not slot.settled:
            return None
        return max(slot.last_used, slot.since) + ttl

    def _end_cooldowns(self) -> None:
        for slot in self._overview.failed:
            assert slot.failure is not None, "the overview knows who has failed"
            slot.waiters.refuse_all(slot.failure.reason, max(1.0, slot.failure.until - self._clock()))
            if self._clock() >= slot.failure.until:
                slot.change(failure=None)

    async def _something_can_have_changed(self, since: float) -> None:
        """`since` is when the last pass began: what falls due between its look and this one is not past, but next."""
        soonest = self._seconds_until_another_look(since)
        try:
            async with asyncio.timeout(None if soonest == INFINITY else max(soonest, _SHORTEST_NAP_SECONDS) + _A_HAIR):
                await self._changed.wait()
        except TimeoutError:
            return

    def _seconds_until_another_look(self, now: float) -> float:
        """In how many seconds something may be to be done although nothing has happened."""
        return min((moment for moment in self._moments(now) if moment is not None), default=INFINITY)

    def _moments(self, now: float) -> Iterator[float | None]:
        seen, limits = self._overview, self._limits
        queues = seen.queues()
        yield seconds_until_pressing(queues, now, limits.max_wait_seconds, self._policy)
        if queues and limits.min_tenure_seconds:
            yield seconds_until_tenured(seen.standing, now, limits.min_tenure_seconds)
        for slot in seen.failed:
            if slot.failure is not None:
                yield slot.failure.until - now
        for slot in seen.settled:
            if (ends := self._idle_until(slot)) is not None:
                yield ends - now

    def _in_preload_order(self) -> list[str]:
        """What only passes through the device goes first, while the device is empty."""
        wanted = [
            slot for slot in self._slots.values() if slot.expert.preload is not Tier.DISK or slot.pin is not Tier.DISK
        ]
        return [slot.name for slot in sorted(wanted, key=lambda slot: -slot.expert.preload.depth)]


def _oldest(slot: Slot) -> int:
    """The leases of the one that has a turn in strict order."""
    first = slot.waiters.first()
    return 1 if first is None else first.leases


_A_HAIR = 1e-6  # seconds; a rounding error must not make it look in vain just before something falls due
_SHORTEST_NAP_SECONDS = 0.001  # a timer that is due is given a moment, so that the loop breathes
