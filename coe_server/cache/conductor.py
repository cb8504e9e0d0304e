"""Turns the scheduler's orders into moves, and keeps what should be up up. Decides nothing that is not pure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

from coe_server.cache.forecast import Forecast
from coe_server.cache.guesses import Guess, Guesses
from coe_server.cache.lookahead import Lookahead, WeightReader
from coe_server.cache.mover import Mover
from coe_server.cache.overview import Overview
from coe_server.cache.planner import Move, Never, NotYet, Plan, plan
from coe_server.cache.policy import Policy
from coe_server.cache.prefetch import LEAST_CHANCE, LEAST_CHANCE_TO_READ, LEAST_DEMAND_TO_READ, Prospect, prefetch
from coe_server.cache.scheduler import Limits, Queue, conduct, seconds_until_pressing, seconds_until_tenured, turns
from coe_server.cache.slot import Slot
from coe_server.cache.succession import Succession
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
        reader: WeightReader | None,
    ) -> None:
        self.ready = asyncio.Event()  # what is to be preloaded has been
        self.inflation = 0.0  # GreedyDual: the credit of the last expert that had to leave
        self.guesses = Guesses()
        self._prefetching: Slot | None = None
        self._lookahead = None if reader is None else Lookahead(reader, self.guesses, events, clock, changed.set)
        self.succession = Succession()
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
        self._overview = Overview(slots, policy)
        self._draining: frozenset[str] = frozenset()
        self._with_ttl = [slot for slot in slots.values() if slot.expert.ttl_seconds is not None]

    async def run(self) -> None:
        """Conduct until cancelled."""
        try:
            while True:
                self._changed.clear()
                began = self._clock()
                self._conduct()
                await self._something_can_have_changed(since=began)
        finally:
            if self._lookahead is not None:
                await self._lookahead.close()

    def asked_for(self, name: str) -> None:
        """A request for this expert has come."""
        self.succession.note(name)
        self.guesses.wrong(Guess.ROOM, name)

    def begin(self, plan_: Plan) -> None:
        """Start a plan; the expert it brings admits at least those who wait for it now."""
        for name in plan_.victims:
            self.inflation = max(self.inflation, self._slots[name].credit)
        goal = self._slots[plan_.moves[-1].expert]
        goal.gate = len(goal.waiters) if self._policy.collates else 1  # in strict order only the oldest has a turn
        goal.pushed_out = False
        for name in plan_.victims:
            self._slots[name].pushed_out = name != goal.name
        if any(move.target is Tier.DEVICE for move in plan_.moves):
            self._see_who_comes(goal)
        if plan_.victims and plan_.moves[-1].target is Tier.DEVICE:
            self._events.record("switch", expert=goal.name, victims=list(plan_.victims), waiting=len(goal.waiters))
        self._mover.begin(plan_)

    def _see_who_comes(self, goal: Slot) -> None:
        for name in self.guesses.open(Guess.ROOM):
            self.guesses.right(Guess.ROOM, name)
        if self._lookahead is not None and goal.tier is Tier.DISK:
            self._lookahead.starts(goal.name)

    def plan_for(self, slot: Slot) -> Plan | NotYet | Never:
        """What it would take to bring this expert to the device now."""
        self._overview.refresh()
        return plan(self._overview.standing, self._overview.holding(slot), self._capacity)

    def forecast(self) -> Forecast:
        """When everybody's turn comes, as things are now."""
        return self._overview.forecast(self._clock(), self._limits, self._capacity)

    def _conduct(self) -> None:
        self._overview.refresh()
        self._end_cooldowns()
        self._see_who_left_unasked()
        queues = self._overview.queues()
        self._follow_orders(queues)
        for slot in tuple(self._overview.at_hand.values()):
            self._admit(slot)
        self._overview.refresh()
        self._keep_up()
        self._prefetch()
        self._retire_idle()
        self._overview.refresh()
        if self._lookahead is not None and self._limits.prefetch:
            self._lookahead.read(self._whose_files(self._lookahead), self._unclaimed())

    def _follow_orders(self, queues: tuple[Queue, ...]) -> None:
        seen = self._overview
        orders = conduct(
            seen.standing, queues, self._capacity, self._clock(), self._limits, self._policy, seen.starting
        )
        self._let_drain(orders.draining)
        for name in orders.staying:
            self._slots[name].gate = len(self._slots[name].waiters)
        for expert, sentence in orders.never.items():
            self._slots[expert].refuse_waiters(sentence)
        for ready in orders.plans:
            self.begin(ready)

    def _let_drain(self, names: frozenset[str]) -> None:
        for name in names | self._draining:
            if self._slots[name].draining is not (name in names):
                self._slots[name].draining = name in names
        self._draining = names

    def _keep_up(self) -> None:
        """Bring up what is to be preloaded, or is below its pin, one at a time while nobody waits or has to leave."""
        if not self._overview.calm:
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

    def _prefetch(self) -> None:
        """Make the next switch shorter while nobody waits; a start on a guess is given up once somebody else does."""
        guess = self._prefetching
        if guess is not None and guess.moving is None:
            guess = self._prefetching = None
        waited = self._overview.anyone_waits
        if guess is not None and waited and not guess.waiters and guess.tier is Tier.DISK:  # a wake is over at once
            self._mover.give_up(guess)
            self._prefetching = None
        if not self._limits.prefetch or not self._overview.calm or not self.ready.is_set():
            return
        way = prefetch(tuple(self._prospects()), self._capacity - self._overview.standing.used)
        if way is not None:
            self._begin_on_a_guess(way)

    def _begin_on_a_guess(self, way: Plan) -> None:
        goal, target = self._slots[way.moves[-1].expert], way.moves[-1].target
        self.begin(way)
        if target is Tier.DEVICE:
            self._prefetching = goal
            self.guesses.begin(Guess.DEVICE, goal.name)
        else:
            self.guesses.begin(Guess.ROOM, goal.name)
            goal.pushed_out = True  # it may come back on a guess, too

    def _see_who_left_unasked(self) -> None:
        for name in self.guesses.open(Guess.DEVICE):
            if self._slots[name].moving is None and self._slots[name].tier is not Tier.DEVICE:
                self.guesses.wrong(Guess.DEVICE, name)

    def _whose_files(self, lookahead: Lookahead) -> str | None:
        """Whose files to read: of those who would have to start, the next whose turn it is, or while none waits or
        starts the one that is to be preloaded next or is likely to be asked for again."""
        if queues := self._overview.queued_on_disk():
            return self._next_in_turn(lookahead, queues)
        if self._preloads:
            return self._preloads[0] if not lookahead.has_read(self._preloads[0]) else None
        if not self._overview.calm:
            return None if self._overview.starting else lookahead.reading
        return self._likeliest(lookahead)

    def _next_in_turn(self, lookahead: Lookahead, queues: tuple[Queue, ...]) -> str | None:
        if any(queue.expert == lookahead.reading for queue in queues):
            return lookahead.reading
        unread = [queue for queue in queues if not lookahead.has_read(queue.expert)]
        order = turns(unread, self._clock(), self._limits.max_wait_seconds, self._policy)
        return next((turn.expert for turn in order), None)

    def _likeliest(self, lookahead: Lookahead) -> str | None:
        chances = self._chances()
        likely = [
            name
            for name, chance in chances.items()
            if chance >= LEAST_CHANCE_TO_READ and self._may_be_read(name) and not lookahead.has_read(name)
        ]
        if lookahead.reading in likely:
            return lookahead.reading
        return max(likely, key=lambda name: chances[name] * self._slots[name].switch_seconds(), default=None)

    def _unclaimed(self) -> Bytes:
        """What experts may still take."""
        return self._capacity - self._overview.standing.used

    def _may_be_read(self, name: str) -> bool:
        slot = self._slots[name]
        idle_on_disk = slot.tier is Tier.DISK and slot.moving is None and slot.failure is None
        return idle_on_disk and slot.demand.at(self._clock()) >= LEAST_DEMAND_TO_READ

    def _chances(self) -> dict[str, float]:
        now = self._clock()
        return self.succession.chances({slot.name: slot.demand.at(now) for slot in self._slots.values()})

    def _prospects(self) -> Iterator[Prospect]:
        """Whoever is on the device or may be asked for next; only those who had to leave may come on a guess."""
        chances = self._chances()
        for slot in self._slots.values():
            chance, here = chances[slot.name], slot.tier is Tier.DEVICE
            if not slot.expert.remote and (here or chance >= LEAST_CHANCE):
                up = slot.costs.move(slot.resting_tier if here else slot.tier, Tier.DEVICE)
                down = slot.costs.move(Tier.DEVICE, slot.resting_tier)
                yield Prospect(self._overview.holding(slot), chance, up, down, may_come=slot.pushed_out)

    def _retire_idle(self) -> None:
        now = self._clock()
        for slot in self._with_ttl:
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
        for slot in tuple(self._overview.failed.values()):
            if slot.failure is None:
                continue
            slot.refuse_waiters(slot.failure.reason, max(1.0, slot.failure.until - self._clock()))
            if self._clock() >= slot.failure.until:
                slot.failure = None
        self._overview.refresh()

    async def _something_can_have_changed(self, since: float) -> None:
        """`since` is when the last pass began: what falls due between its look and this one is not past, but next."""
        soonest = min((moment for moment in self._moments(since) if moment is not None), default=None)
        try:
            async with asyncio.timeout(None if soonest is None else max(soonest, _SHORTEST_NAP_SECONDS)):
                await self._changed.wait()
        except TimeoutError:
            return

    def _moments(self, now: float) -> Iterator[float | None]:
        """In how many seconds orders may differ although nothing has happened."""
        seen, limits = self._overview, self._limits
        queues = seen.queues()
        yield seconds_until_pressing(queues, now, limits.max_wait_seconds, self._policy)
        if queues and limits.min_tenure_seconds:
            yield seconds_until_tenured(seen.standing, now, limits.min_tenure_seconds)
        for slot in seen.failed.values():
            if slot.failure is not None:
                yield slot.failure.until - now
        for slot in self._with_ttl:
            if (ends := self._idle_until(slot)) is not None:
                yield ends - now

    def _in_preload_order(self) -> list[str]:
        """What only passes through the device goes first, while the device is empty."""
        wanted = [
            slot for slot in self._slots.values() if slot.expert.preload is not Tier.DISK or slot.pin is not Tier.DISK
        ]
        return [slot.name for slot in sorted(wanted, key=lambda slot: -slot.expert.preload.depth)]


_SHORTEST_NAP_SECONDS = 0.001  # a timer that is due is given a moment, so that the loop breathes
