"""Turns the scheduler's orders into moves; preloads and prefetches experts. Decisions are made in pure modules."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from math import inf

from coe_server.cache.claims import Claim
from coe_server.cache.mover import Mover
from coe_server.cache.overview import Overview
from coe_server.cache.planner import Plan
from coe_server.cache.policy import Limits, Policy
from coe_server.cache.scheduler import conduct, seconds_until_pressing, seconds_until_tenured
from coe_server.cache.slot import Slot, residency_of
from coe_server.cache.tiers import Ledger, Tier, idle_tier
from coe_server.cache.upkeep import Prefetching, Upkeep
from coe_server.events import EventLog

logger = logging.getLogger(__name__)


class Conductor:
    """The only task that orders moves. `admit` is called for experts that may admit waiting requests."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        overview: Overview,
        mover: Mover,
        events: EventLog,
        ledger: Ledger,
        limits: Limits,
        policy: Policy,
        clock: Callable[[], float],
        admit: Callable[[Slot], None],
        changed: asyncio.Event,
        upkeep: Upkeep,
        prefetching: Prefetching,
        turn_over: Callable[[], Iterable[Plan]],
    ) -> None:
        """`turn_over` replaces experts that a reload has changed, or lets them go; it returns what to stop for that."""
        self.ready = asyncio.Event()  # set once preloading is done
        self._slots = slots
        self._overview = overview
        self._mover = mover
        self._events = events
        self._ledger = ledger
        self._limits = limits
        self._policy = policy
        self._clock = clock
        self._admit = admit
        self._changed = changed  # set after every change that may require new orders
        self._upkeep = upkeep
        self._prefetching = prefetching
        self._turn_over = turn_over
        self._draining: frozenset[str] = frozenset()
        self._claims: tuple[Claim, ...] = ()
        self._lost: set[int] = set()  # cards
        self._to_restart: set[str] = set()

    async def run(self) -> None:
        """Conduct until cancelled."""
        while True:
            self._changed.clear()
            began = self._clock()
            self._conduct()
            await self._something_can_have_changed(since=began)

    def begin(self, plan_: Plan) -> None:
        """Start a plan; the expert it loads admits at least the requests that wait for it now."""
        victims = plan_.victims
        goal = self._slots[plan_.moves[-1].expert]
        goal.change(gate=goal.waiters.leases if self._policy.collates else _oldest(goal), pushed_out=False)
        for name in victims:
            self._slots[name].change(pushed_out=name != goal.name)
        if any(move.target is Tier.DEVICE for move in plan_.moves):
            self._prefetching.note_load()
            if pushed := [name for name in victims if name != goal.name]:
                self._events.record("switch", expert=goal.name, victims=pushed, waiting=len(goal.waiters))
        self._mover.begin(plan_)

    def lose_card(self, card: int) -> None:
        """Take the card out of service: from the next pass on its experts are stopped."""
        self._lost.add(card)

    def restart(self, slot: Slot) -> None:
        """Stop its engine once its answers in progress are complete. The next request in its queue starts it again."""
        slot.change(restarting=True, draining=True, gate=0)
        self._to_restart.add(slot.name)
        self._changed.set()

    def _conduct(self) -> None:
        """One pass over everything that is due, in this order."""
        now = self._clock()
        if self._lost:
            _leave_lost_cards(self._slots.values(), self._lost, self._mover)
        _end_cooldowns(self._overview.groups.failed.values(), now)
        self._prefetching.count_wasted()
        self._stop_for_restarts()
        for way in self._turn_over():
            self.begin(way)
        self._follow_orders()
        for slot in tuple(self._overview.groups.at_hand.values()):
            self._admit(slot)
        self._prefetching.give_way()
        if self._overview.groups.calm:
            self._keep_up()
        for slot in tuple(self._overview.groups.settled.values()):
            if (ends := _idle_until(slot)) is not None and self._clock() >= ends:
                self.begin(Plan((slot.move_to(idle_tier(slot.engine.footprint)),)))

    def _stop_for_restarts(self) -> None:
        for name in tuple(self._to_restart):
            slot = self._slots[name]
            if slot.restarting and (slot.leases or slot.moving is not None):
                continue
            if slot.restarting and slot.tier is not Tier.DISK:
                self.begin(Plan((slot.move_to(Tier.DISK),)))
            if slot.tier is Tier.DISK:  # its engine has ended by itself, or its load was given up before it began
                slot.change(draining=False)
            slot.change(restarting=False)
            self._to_restart.discard(slot.name)

    def _keep_up(self) -> None:
        """Load the experts to preload, then those below their pin, then likely ones: one plan at a time."""
        way = self._upkeep.preload()
        if way is None:
            if not self.ready.is_set():
                self.ready.set()
                told = ", ".join(f"{slot.name} {residency_of(slot)}" for slot in self._slots.values())
                logger.info("ready: %s", told or "no experts of its own")
            way = self._upkeep.return_to_pin()
        if way is not None:
            self.begin(way)
        elif self._limits.prefetch and (way := self._prefetching.plan(self._clock())) is not None:
            self.begin(way)
            self._prefetching.note(way)

    def _follow_orders(self) -> None:
        seen = self._overview
        if not (queues := seen.queues()):
            if self._draining:
                self._draining = _let_drain(self._slots, self._draining, frozenset())
            if self._claims and not seen.groups.in_turn:
                self._claims = ()
            return
        orders = conduct(
            seen.standing,
            queues,
            self._ledger.capacity,
            self._clock(),
            self._limits,
            self._policy,
            seen.groups.starts_on,
            self._claims,
        )
        self._claims = orders.claims
        self._draining = _let_drain(self._slots, self._draining, orders.draining)
        for name in orders.staying:
            self._slots[name].change(gate=self._slots[name].waiters.leases)
        for expert, sentence in orders.never.items():
            self._slots[expert].waiters.refuse_all(sentence)
        for ready in orders.plans:
            self.begin(ready)

    async def _something_can_have_changed(self, since: float) -> None:
        """Wait for a change or the next timer. Timers count from `since`, the start of the last pass."""
        soonest = min(_moments(self._overview, self._limits, self._policy, since), default=inf)
        try:
            async with asyncio.timeout(None if soonest == inf else max(soonest, _SHORTEST_NAP_SECONDS) + _A_HAIR):
                await self._changed.wait()
        except TimeoutError:
            return


def _moments(seen: Overview, limits: Limits, policy: Policy, now: float) -> Iterator[float]:
    """Seconds until a pass may be needed without an event."""
    if queues := seen.queues():
        yield seconds_until_pressing(queues, now, limits.max_wait_seconds, policy)
        if limits.min_tenure_seconds:
            yield seconds_until_tenured(seen.standing, now, limits.min_tenure_seconds)
    groups = seen.groups
    for slot in groups.failed.values():
        if slot.failure is not None:
            yield slot.failure.until - now
    for slot in groups.settled.values():
        if (ends := _idle_until(slot)) is not None:
            yield ends - now


def _leave_lost_cards(slots: Iterable[Slot], lost: Collection[int], mover: Mover) -> None:
    """Stop the experts on lost cards at once: their leases are lost. A loading expert's plan is cancelled."""
    for slot in slots:
        if slot.expert.remote or not any(map(slot.touches, lost)):
            continue
        if slot.moving is None:
            mover.abandon(slot)
        elif slot.moving.target is Tier.DEVICE:
            mover.give_up(slot)


def _let_drain(slots: Mapping[str, Slot], before: frozenset[str], names: frozenset[str]) -> frozenset[str]:
    """Let these experts drain, and those that did before no longer. Returns the draining experts."""
    for name in names | before:
        if slots[name].draining is not (name in names):
            slots[name].change(draining=name in names)
    return names


def _end_cooldowns(failed: Iterable[Slot], now: float) -> None:
    for slot in failed:
        assert slot.failure is not None, "they are the failed experts"
        slot.waiters.refuse_all(slot.failure.reason, max(1.0, slot.failure.until - now))
        if now >= slot.failure.until:
            slot.change(failure=None)


def _idle_until(slot: Slot) -> float | None:
    """When its ttl expires; None if it is in use, has no ttl, or may not be evicted."""
    ttl = slot.expert.ttl_seconds
    if ttl is None or slot.busy or slot.waiters or not slot.settled:
        return None
    if idle_tier(slot.engine.footprint).depth > slot.pin.depth:
        return None
    return max(slot.last_used, slot.since) + ttl


def _oldest(slot: Slot) -> int:
    """The number of leases that its oldest request waits for."""
    first = slot.waiters.first()
    return 1 if first is None else first.leases


_A_HAIR = 1e-6  # seconds; added so that rounding does not end the sleep just before a timer is due
_SHORTEST_NAP_SECONDS = 0.001  # minimum sleep before an overdue timer, so that other tasks run
