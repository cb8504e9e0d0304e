"""Which expert to load while no request waits: those to preload, then those below their pin."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from coe_server.cache.evictions import Move
from coe_server.cache.overview import Overview
from coe_server.cache.pins import pinned, seated
from coe_server.cache.planner import Never, NotYet, Plan, plan
from coe_server.cache.slot import Slot
from coe_server.cache.tiers import Bytes, Ledger, Tier

logger = logging.getLogger(__name__)


class Upkeep:
    """The experts to preload that were not tried yet, and the plan for the next load."""

    def __init__(self, slots: Mapping[str, Slot], overview: Overview, ledger: Ledger) -> None:
        self._slots = slots
        self._overview = overview
        self._ledger = ledger
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
        if not self._overview.anyone_is_below_a_pin:
            return None
        low = (slot for slot in self._slots.values() if slot.tier.depth > slot.pin.depth and slot.failure is None)
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
        standing, holding, capacity = self._overview.standing, self._overview.holding(slot), self._ledger.capacity
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
