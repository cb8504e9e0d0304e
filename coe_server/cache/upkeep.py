"""What moves while no request waits: experts to preload, those below their pin, and those likely to be asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from coe_server.cache.demand import Demand
from coe_server.cache.evictions import Move
from coe_server.cache.mover import Mover
from coe_server.cache.overview import Overview, holding_of
from coe_server.cache.pins import pinned, seated
from coe_server.cache.planner import Never, NotYet, Plan, plan
from coe_server.cache.policy import Policy
from coe_server.cache.prefetch import Guess, Guesses, prefetch
from coe_server.cache.slot import Slot
from coe_server.cache.tiers import Bytes, Ledger, Tier

logger = logging.getLogger(__name__)


class Upkeep:
    """The experts to preload that were not tried yet, and the plan for the next load."""

    def __init__(self, slots: Mapping[str, Slot], overview: Overview, ledger: Ledger, policy: Policy) -> None:
        self._slots = slots
        self._overview = overview
        self._ledger = ledger
        self._policy = policy
        wanted = [slot for slot in slots.values() if slot.expert.preload is not Tier.DISK or slot.pin is not Tier.DISK]
        # experts that go on to host memory are loaded first, while the device is empty
        self._preloads = [slot.name for slot in sorted(wanted, key=lambda slot: -slot.expert.preload.depth)]

    def add(self, slot: Slot) -> None:
        """Preload this expert too, if that is its setting: it has come, or has become another one."""
        self.forget(slot)
        if slot.expert.preload is not Tier.DISK:
            self._preloads.append(slot.name)

    def forget(self, slot: Slot) -> None:
        self._preloads = [name for name in self._preloads if name != slot.name]

    def preload(self) -> Plan | None:
        """The plan to load the next expert that fits; None if none fits or all have been tried."""
        while self._preloads:
            slot = self._slots[self._preloads.pop(0)]
            if (way := self._way_up(slot)) is not None:
                return way
            if slot.tier.depth > slot.expert.preload.depth:
                logger.warning("expert '%s' was not preloaded: there is no room for it now", slot.name)
        return None

    def return_to_pin(self) -> Plan | None:
        """The plan to load an expert below its pin; None if there is none, or no free memory."""
        if not (below := self._overview.groups.below_pin):
            return None
        low = (slot for slot in self._slots.values() if slot.name in below and slot.failure is None)
        return next((way for slot in low if (way := self._way_up(slot)) is not None), None)

    def _way_up(self, slot: Slot) -> Plan | None:
        """The plan to move it to its target tier; None if it is there or does not fit.

        Idle experts are evicted for a pin, not for a preload.
        """
        goal = _belongs_in(slot)
        if slot.tier.depth <= goal.depth:
            return None
        outcome = self._outcome(slot, goal)
        if not isinstance(outcome, Plan):
            return None
        if len(outcome.moves) > 1:
            if slot.tier.depth <= slot.pin.depth:
                return None
            goal = slot.pin
        then = (Move(slot.name, Tier.DEVICE, Tier.HOST, outcome.moves[-1].seat),) if goal is Tier.HOST else ()
        return Plan(outcome.moves + then)

    def _outcome(self, slot: Slot, goal: Tier) -> Plan | NotYet | Never:
        """What passes through the device stays bound to its cards: where it can, not to those of an expert that is
        still to be preloaded to the device, since they would push each other out."""
        standing, capacity = self._overview.standing, self._ledger.capacity
        holding = holding_of(slot, self._policy)
        if goal is Tier.HOST:
            beside = plan(standing, holding, capacity - self._to_come(capacity))
            if isinstance(beside, Plan) and len(beside.moves) == 1:
                return beside
        return plan(standing, holding, capacity)

    def _to_come(self, capacity: Bytes) -> Bytes:
        """What the experts that are still to be preloaded to the device will hold on its cards."""
        to_load = [self._slots[name] for name in self._preloads]
        coming = [slot for slot in to_load if slot.tier is not Tier.DEVICE and _belongs_in(slot) is Tier.DEVICE]
        experts = [pinned(slot.name, slot.engine.footprint, Tier.DEVICE, slot.seats) for slot in coming]
        return sum((Bytes(one.held.cards) for one in seated(experts, capacity)), Bytes())


def _belongs_in(slot: Slot) -> Tier:
    """The tier to which it is preloaded or pinned, whichever is nearer to the device."""
    return min(slot.expert.preload, slot.pin, key=lambda tier: tier.depth)


class Prefetching:
    """Makes the next switch shorter, while no request waits and nothing moves."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        overview: Overview,
        ledger: Ledger,
        mover: Mover,
        demand: Demand,
        guesses: Guesses,
    ) -> None:
        self._slots = slots
        self._overview = overview
        self._ledger = ledger
        self._mover = mover
        self._demand = demand
        self._guesses = guesses
        self._coming: Slot | None = None  # the expert that is being loaded

    def plan(self, now: float) -> Plan | None:
        """The moves that are worth their cost; None if none are."""
        here, away = self._overview.prospects()
        free = self._ledger.capacity - self._overview.standing.used
        return prefetch(here.values(), away, self._demand.chances(now), free)

    def note(self, begun: Plan) -> None:
        """Note that a plan of this kind has begun."""
        last = begun.moves[-1]
        goal = self._slots[last.expert]
        if last.target is Tier.DEVICE:
            self._coming = goal
            self._guesses.begin(Guess.DEVICE, goal.name)
        else:
            goal.change(pushed_out=True)  # it may be prefetched again
            self._guesses.begin(Guess.ROOM, goal.name)

    def note_load(self) -> None:
        """Note that an expert is loaded now: idle ones were usefully evicted for it."""
        for name in tuple(self._guesses.open[Guess.ROOM]):
            self._guesses.end(Guess.ROOM, name, self._guesses.useful)

    def count_wasted(self) -> None:
        """Count each expert that was loaded and evicted without a request."""
        for name in tuple(self._guesses.open[Guess.DEVICE]):
            if self._slots[name].moving is None and self._slots[name].tier is not Tier.DEVICE:
                self._guesses.end(Guess.DEVICE, name, self._guesses.wasted)

    def give_way(self) -> None:
        """Cancel a start when a request waits for another expert. A wake is fast and goes on."""
        if self._coming is not None and self._coming.moving is None:
            self._coming = None
        coming = self._coming
        if coming is not None and self._overview.groups.in_turn and not coming.waiters and coming.tier is Tier.DISK:
            self._mover.give_up(coming)
            self._coming = None
