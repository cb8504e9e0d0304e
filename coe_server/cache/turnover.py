"""Experts that come, change and go while the cache runs: each when nothing needs it as it was, the others untouched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from coe_server.cache.pins import left_out, pinned
from coe_server.cache.planner import Plan
from coe_server.cache.prefetch import Guess, Guesses
from coe_server.cache.slot import Expert, Slot, Slots, at_its_pin, new_slot, place_pinned
from coe_server.cache.tiers import Bytes, Holding, Ledger, Tier
from coe_server.errors import NoRoom

if TYPE_CHECKING:
    from coe_server.cache.demand import Demand
    from coe_server.cache.health import Health
    from coe_server.cache.moves import Tasks
    from coe_server.cache.policy import Limits
    from coe_server.cache.upkeep import Upkeep
    from coe_server.events import EventLog

logger = logging.getLogger(__name__)


class Terms(NamedTuple):
    """Settings of an expert that apply without a restart of its engine. `pin`: None leaves it as it is."""

    pin: Tier | None
    preload: Tier
    ttl_seconds: float | None

    def of(self, expert: Expert) -> Expert:
        """The expert under these terms."""
        pin = expert.pin if self.pin is None else self.pin
        return replace(expert, pin=pin, preload=self.preload, ttl_seconds=self.ttl_seconds)


@dataclass(frozen=True, slots=True)
class Turnover:
    """All that a reload changes about the experts that have an engine, and the names that share one (`bases`).

    `order`: the names of all experts with an engine, as they are to be listed.
    """

    added: tuple[Expert, ...] = ()
    changed: tuple[Expert, ...] = ()  # with their new engines
    removed: tuple[str, ...] = ()
    adjusted: Mapping[str, Terms] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()


def why_not(turnover: Turnover, slots: Mapping[str, Slot], capacity: Bytes) -> str | None:
    """Why a turnover is refused, in one sentence; None if its names are free and the experts fit after and during it.

    After it, every expert must fit beside the pinned ones. During it, so must each removed or changed expert for which
    requests wait, beside the new pins: its old engine answers them. An expert that did not fit before either, because a
    card was lost, is no reason to refuse.
    """
    if (taken := _taken(turnover.bases, slots)) is not None:
        return taken
    new = {one.name for one in (*turnover.added, *turnover.changed)}
    if not new and all(terms.pin is None for terms in turnover.adjusted.values()):
        return None
    end = dict(_at_the_end(turnover, slots))
    before = left_out([at_its_pin(slot, slot.pin) for slot in slots.values()], capacity)
    for name, why in left_out(end.values(), capacity).items():
        if name in new or name not in before:
            return f"experts.{name}: {why} (memory.device, memory.host)"
    for name in (*turnover.removed, *(one.name for one in turnover.changed)):
        slot = slots.get(name)
        if slot is None or not slot.waiters or slot.expert.remote:
            continue
        meanwhile = end | {name: pinned(name, slot.engine.footprint, Tier.DISK, slot.expert.seats)}
        if (found := left_out(meanwhile.values(), capacity).get(name)) is not None:
            return f"experts.{name}: requests wait for it as it is, and {found}; reload again once they are answered"
    return None


def _taken(bases: Mapping[str, str], slots: Mapping[str, Slot]) -> str | None:
    """Why a name that is to share an engine still belongs to another one; None if none does."""
    for name in bases:
        if (slot := slots.get(name)) is not None:
            if slot.expert.on_nodes:
                return f"experts.{name}: a node has an expert of this name; give another one"
            return f"experts.{name}: its engine still answers what was asked of it; reload again once it is gone"
    return None


def _at_the_end(turnover: Turnover, slots: Mapping[str, Slot]) -> Iterator[tuple[str, Holding]]:
    new = {one.name: one for one in (*turnover.added, *turnover.changed)}
    for slot in slots.values():
        if slot.name in turnover.removed or (slot.leaves and slot.name not in new):
            continue
        terms, next_one = turnover.adjusted.get(slot.name), new.pop(slot.name, None) or slot.successor
        pin = slot.pin if terms is None or terms.pin is None else terms.pin
        if next_one is None:
            yield slot.name, at_its_pin(slot, pin)
        elif slot.leaves or slot.expert.remote or next_one.remote:
            yield slot.name, _to_come(next_one, next_one.pin)
        else:
            yield slot.name, _to_come(next_one, pin)
    for one in new.values():
        yield one.name, _to_come(one, one.pin)


def _to_come(expert: Expert, pin: Tier) -> Holding:
    return pinned(expert.name, expert.engine.footprint, Tier.DISK if expert.remote else pin, expert.seats)


class Roster:
    """Which experts the cache has."""

    def __init__(
        self,
        slots: Slots,
        changes: dict[str, None],
        limits: Limits,
        ledger: Ledger,
        events: EventLog,
        clock: Callable[[], float],
        tasks: Tasks,
        health: Health,
        demand: Demand,
        guesses: Guesses,
        upkeep: Upkeep,
        changed: asyncio.Event,
    ) -> None:
        self._slots = slots
        self._changes = changes
        self._limits = limits
        self._ledger = ledger
        self._events = events
        self._clock = clock
        self._tasks = tasks
        self._health = health
        self._demand = demand
        self._guesses = guesses
        self._upkeep = upkeep
        self._changed = changed
        self._turning: dict[str, Slot] = {}  # experts that change or leave

    def take_over(self, turnover: Turnover) -> None:
        """Let experts come, change and go. New names are accepted from now on; those that change or go finish first
        what was asked of them, and no other expert is touched. Raises NoRoom; then nothing has changed.
        """
        if (why := why_not(turnover, self._slots, self._ledger.capacity)) is not None:
            raise NoRoom(why)
        self._share(turnover.bases)
        for name in turnover.removed:
            self.remove(name)
        for name, terms in turnover.adjusted.items():
            self._adjust(self._slots[name], terms)
        for expert in (*turnover.added, *turnover.changed):
            self._bring(expert)
        self._slots.put_in_order(turnover.order)
        place_pinned(self._slots, self._ledger.capacity)
        self._changed.set()

    def _share(self, bases: Mapping[str, str]) -> None:
        """Let these names share the engines of their bases, and no others."""
        before, self._slots.bases = self._slots.bases, dict(bases)
        for name in sorted(before.keys() - bases.keys()):
            self._slots.former[name] = self._slots[before[name]]
            self._events.record("expert", expert=name, change="removed")
        for name in sorted(bases.keys() - before.keys()):
            self._events.record("expert", expert=name, change="added")

    def add(self, expert: Expert) -> None:
        """Add an expert of nodes. It has no process here, so it is on the device at once."""
        assert expert.on_nodes, "an expert with a process here comes by `take_over`, which sees that it fits"
        self._bring(expert)

    def _bring(self, expert: Expert) -> None:
        """Add an expert; one of this name that is there is replaced by it, once it has answered what waits for it."""
        slot = self._slots.get(expert.name)
        if slot is not None:
            slot.change(successor=expert, renewed_at=self._clock(), leaves=False)
            self._upkeep.forget(slot)
            self._turning[slot.name] = slot
            self._changed.set()
            return
        slot = self._slots[expert.name] = new_slot(expert, self._limits, self._changes)
        self._slots.former.pop(expert.name, None)
        self._start_to_count(slot)
        self._events.record("expert", expert=slot.name, change="added")

    def remove(self, name: str) -> None:
        """Remove an expert once it has answered what was asked of it. It is loaded for nothing else."""
        slot = self._slots[name]
        pin = slot.pin if slot.expert.remote else Tier.DISK
        slot.change(leaves=True, successor=None, pin=pin)
        self._upkeep.forget(slot)
        self._turning[name] = slot
        self._changed.set()

    def _adjust(self, slot: Slot, terms: Terms) -> None:
        pin = slot.pin if terms.pin is None or slot.expert.remote else terms.pin
        wants_more = terms.preload.depth < slot.expert.preload.depth
        slot.change(pin=pin, expert=terms.of(slot.expert))
        if slot.successor is not None:
            slot.change(successor=terms.of(slot.successor))
        elif wants_more:
            self._upkeep.add(slot)

    def turn_over(self) -> Iterator[Plan]:
        """Replace, or let go, every expert whose turn that is. One that still has a process is stopped first."""
        for slot in tuple(self._turning.values()):
            if not _is_done(slot):
                continue
            if slot.tier is not Tier.DISK and not slot.expert.remote:
                yield Plan((slot.move_to(Tier.DISK),))
                continue
            if slot.expert.remote:
                self._tasks.own(slot.engine.stop())
            del self._turning[slot.name]
            if slot.leaves:
                self._let_go(slot)
                continue
            assert slot.successor is not None, "an expert that changes has a successor"
            slot.become(slot.successor, slot.successor.max_concurrency or self._limits.max_concurrency)
            place_pinned(self._slots, self._ledger.capacity)
            self._start_to_count(slot)
            self._events.record("expert", expert=slot.name, change="changed")
            logger.info("%s: has its new settings", slot.name)

    def _let_go(self, slot: Slot) -> None:
        name = slot.name
        for guess in Guess:
            self._guesses.end(guess, name, self._guesses.wasted)
        slot.change(tier=Tier.DISK)
        del self._slots[name]
        self._slots.former[name] = slot
        self._demand.forget(name)
        self._health.forget(slot)
        place_pinned(self._slots, self._ledger.capacity)
        self._events.record("expert", expert=name, change="removed")
        logger.info("%s: is gone", name)

    def _start_to_count(self, slot: Slot) -> None:
        if not slot.expert.on_nodes:
            self._demand.add(slot.name)
        self._upkeep.add(slot)
        self._health.watch_one(slot)


def _is_done(slot: Slot) -> bool:
    """True if its present engine has nothing left to do before its successor comes, or before it leaves."""
    if slot.leases or slot.moving is not None:
        return False
    if slot.leaves:
        return not slot.waiters
    return slot.successor is not None and (slot.tier is Tier.DISK or not slot.owes)
