"""Turns the scheduler's orders into moves, and keeps what should be up up. Decides nothing that is not pure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from coe_server.cache.mover import Mover
from coe_server.cache.planner import Holding, Move, Never, NotYet, Plan, plan
from coe_server.cache.policy import Policy
from coe_server.cache.prefetch import prefetch
from coe_server.cache.scheduler import Limits, Queue, conduct, seconds_until_pressing
from coe_server.cache.slot import Slot
from coe_server.cache.tiers import Bytes, Tier
from coe_server.events import EventLog

logger = logging.getLogger(__name__)


class Conductor:
    """The one task that orders moves. `admit` is called for experts whose queue may go on."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        mover: Mover,
        events: EventLog,
        capacity: Bytes,
        limits: Limits,
        policy: Policy,
        clock: Callable[[], float],
        admit: Callable[[Slot], None],
        changed: asyncio.Event,
    ) -> None:
        self.ready = asyncio.Event()  # what is to be preloaded has been
        self.inflation = 0.0  # GreedyDual: the credit of the last expert that had to leave
        self.prefetches = 0  # experts brought on a guess
        self._prefetching: Slot | None = None
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

    async def run(self) -> None:
        """Conduct until cancelled."""
        while True:
            self._changed.clear()
            self._conduct()
            await self._something_can_have_changed()

    def begin(self, plan_: Plan) -> None:
        """Start a plan; the expert it brings admits at least those who wait for it now."""
        for name in plan_.victims:
            self.inflation = max(self.inflation, self._slots[name].credit)
        goal = self._slots[plan_.moves[-1].expert]
        goal.gate = len(goal.waiters) if self._policy.collates else 1  # in strict order only the oldest has a turn
        goal.pushed_out = False
        for move in plan_.moves[:-1]:
            self._slots[move.expert].pushed_out = True
        if plan_.victims and plan_.moves[-1].target is Tier.DEVICE:
            self._events.record("switch", expert=goal.name, victims=list(plan_.victims), waiting=len(goal.waiters))
        self._mover.begin(plan_)

    def plan_for(self, slot: Slot) -> Plan | NotYet | Never:
        """What it would take to bring this expert to the device now."""
        return plan(self._holdings(self._clock(), besides=(slot.name,)), slot.name, self._capacity)

    def _conduct(self) -> None:
        self._end_cooldowns()
        queues = self._queues()
        if queues:
            self._follow_orders(queues)
        else:
            self._undo_draining()
        for slot in self._slots.values():
            if slot.waiters:
                self._admit(slot)
        self._keep_up(waiting=bool(queues))
        self._prefetch(waiting=bool(queues))
        self._retire_idle()

    def _follow_orders(self, queues: tuple[Queue, ...]) -> None:
        now = self._clock()
        starting = any(slot.is_starting for slot in self._slots.values())
        orders = conduct(self._holdings(now), queues, self._capacity, now, self._limits, self._policy, starting)
        for name, slot in self._slots.items():
            slot.draining = name in orders.draining
        for expert, sentence in orders.never.items():
            self._slots[expert].refuse_waiters(sentence)
        for ready in orders.plans:
            self.begin(ready)

    def _undo_draining(self) -> None:
        for slot in self._slots.values():
            slot.draining = False

    def _keep_up(self, waiting: bool) -> None:
        """Bring up what is to be preloaded, or is below its pin, one at a time while nobody waits or has to leave."""
        if waiting or self._anyone_moves():
            return
        while self._preloads:
            if self._bring_up(self._slots[self._preloads.pop(0)]):
                return
        if not self.ready.is_set():
            self.ready.set()
            logger.info("ready: %s", ", ".join(f"{slot.name} {slot.residency}" for slot in self._slots.values()))
        for slot in self._slots.values():
            if slot.tier.depth > slot.pin.depth and slot.failure is None and self._bring_up(slot):
                return

    def _bring_up(self, slot: Slot) -> bool:
        """Begin an expert's way to the tier it should be in; False if it is there or there is no room."""
        goal = min(slot.expert.preload, slot.pin, key=lambda tier: tier.depth)
        if slot.tier.depth <= goal.depth:
            return False
        outcome = self.plan_for(slot)
        if not isinstance(outcome, Plan) or len(outcome.moves) > 1:
            logger.warning("expert '%s' was not brought to %s: there is no room for it now", slot.name, goal)
            return False
        then = (Move(slot.name, Tier.DEVICE, Tier.HOST),) if goal is Tier.HOST else ()
        self.begin(Plan(outcome.moves + then))
        return True

    def _prefetch(self, waiting: bool) -> None:
        """Bring back who was pushed out and is in demand while nobody waits; give up as soon as somebody else does."""
        guess = self._prefetching
        if guess is not None and guess.moving is None:
            guess = self._prefetching = None
        if guess is not None and waiting and not guess.waiters and guess.tier is Tier.DISK:  # a wake is over at once
            self._mover.give_up(guess)
            self._prefetching = None
        if not self._limits.prefetch or waiting or not self.ready.is_set() or self._anyone_moves():
            return
        now = self._clock()
        demand = {slot.name: slot.demand.at(now) for slot in self._slots.values() if slot.pushed_out}
        way = prefetch(self._holdings(now, besides=demand), demand, self._capacity) if demand else None
        if way is not None:
            self._prefetching = self._slots[way.moves[-1].expert]
            self._prefetching.prefetched = True
            self.prefetches += 1
            self.begin(way)

    def _anyone_moves(self) -> bool:
        return any(slot.moving for slot in self._slots.values())

    def _holdings(self, now: float, besides: Collection[str] = ()) -> list[Holding]:
        """Everyone who holds memory, moves or is waited for; experts idle on disk take no part in a plan."""
        least = self._limits.min_tenure_seconds
        return [
            slot.holding(self._policy.retention, tenured=now - slot.since >= least)
            for slot in self._slots.values()
            if slot.waiters or slot.moving is not None or slot.tier is not Tier.DISK or slot.name in besides
        ]

    def _retire_idle(self) -> None:
        now = self._clock()
        for slot in self._slots.values():
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
        for slot in self._slots.values():
            if slot.failure is not None:
                slot.refuse_waiters(slot.failure.reason, max(1.0, slot.failure.until - self._clock()))
                if self._clock() >= slot.failure.until:
                    slot.failure = None

    def _queues(self) -> tuple[Queue, ...]:
        waiting = [slot for slot in self._slots.values() if slot.waiters]
        if waiting and not self._policy.collates:  # in strict order of arrival nobody but the oldest has a turn
            waiting = [min(waiting, key=lambda slot: slot.waiters.arrivals()[0])]
        return tuple(slot.queue() for slot in waiting if slot.moving is None and slot.tier is not Tier.DEVICE)

    async def _something_can_have_changed(self) -> None:
        now = self._clock()
        moments = [seconds_until_pressing(self._queues(), now, self._limits.max_wait_seconds, self._policy)]
        for slot in self._slots.values():
            if slot.failure is not None:
                moments.append(slot.failure.until - now)
            if (ends := self._idle_until(slot)) is not None:
                moments.append(ends - now)
        soonest = min((m for m in moments if m is not None), default=None)
        try:
            async with asyncio.timeout(None if soonest is None else max(soonest, _SHORTEST_NAP_SECONDS)):
                await self._changed.wait()
        except TimeoutError:
            return

    def _in_preload_order(self) -> list[str]:
        """What only passes through the device goes first, while the device is empty."""
        wanted = [
            slot for slot in self._slots.values() if slot.expert.preload is not Tier.DISK or slot.pin is not Tier.DISK
        ]
        return [slot.name for slot in sorted(wanted, key=lambda slot: -slot.expert.preload.depth)]


_SHORTEST_NAP_SECONDS = 0.001  # a timer that is due is given a moment, so that the loop breathes
