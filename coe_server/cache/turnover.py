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
from coe_server.cache.slot import Expert, Slot, Slots, at_its_pin, new_slot
from coe_server.cache.tiers import Bytes, Holding, Tier
from coe_server.errors import NoRoom

if TYPE_CHECKING:
    from coe_server.cache.conductor import Conductor
    from coe_server.cache.health import Health
    from coe_server.cache.mover import Tasks
    from coe_server.cache.scheduler import Limits
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
    """Which experts the cache has. `placed` is called after each change of pins or seats."""

    def __init__(
        self,
        slots: Slots,
        changes: dict[str, None],
        limits: Limits,
        events: EventLog,
        guesses: Guesses,
        clock: Callable[[], float],
        tasks: Tasks,
        health: Health,
        placed: Callable[[], None],
        changed: asyncio.Event,
    ) -> None:
        self._slots = slots
        self._changes = changes
        self._limits = limits
        self._events = events
        self._guesses = guesses
        self._clock = clock
        self._tasks = tasks
        self._health = health
        self._placed = placed
        self._changed = changed
        self._turning: dict[str, Slot] = {}  # experts that change or leave

    def take_over(self, turnover: Turnover, conductor: Conductor, capacity: Bytes) -> None:
        """Begin a turnover: new names are accepted from now on. Raises NoRoom; then nothing has changed."""
        if (why := why_not(turnover, self._slots, capacity)) is not None:
            raise NoRoom(why)
        self._share(turnover.bases)
        for name in turnover.removed:
            self.remove(name, conductor)
        for name, terms in turnover.adjusted.items():
            self._adjust(self._slots[name], terms, conductor)
        for expert in (*turnover.added, *turnover.changed):
            self.add(expert, conductor)
        self._slots.put_in_order(turnover.order)
        self._placed()
        self._changed.set()

    def _share(self, bases: Mapping[str, str]) -> None:
        """Let these names share the engines of their bases, and no others."""
        before, self._slots.bases = self._slots.bases, dict(bases)
        for name in sorted(before.keys() - bases.keys()):
            self._slots.former[name] = self._slots[before[name]]
            self._events.record("expert", expert=name, change="removed")
        for name in sorted(bases.keys() - before.keys()):
            self._events.record("expert", expert=name, change="added")

    def add(self, expert: Expert, conductor: Conductor) -> None:
        """Add an expert; one of this name that is there is replaced by it, once it has answered what waits for it."""
        slot = self._slots.get(expert.name)
        if slot is not None:
            slot.change(successor=expert, renewed_at=self._clock(), leaves=False)
            conductor.upkeep.forget(slot)
            self._turning[slot.name] = slot
            self._changed.set()
            return
        slot = self._slots[expert.name] = new_slot(expert, self._limits, self._changes)
        self._slots.former.pop(expert.name, None)
        self._start_to_count(slot, conductor)
        self._events.record("expert", expert=slot.name, change="added")

    def remove(self, name: str, conductor: Conductor) -> None:
        """Remove an expert once it has answered what was asked of it. It is loaded for nothing else."""
        slot = self._slots[name]
        pin = slot.pin if slot.expert.remote else Tier.DISK
        slot.change(leaves=True, successor=None, pin=pin)
        conductor.upkeep.forget(slot)
        self._turning[name] = slot
        self._changed.set()

    def _adjust(self, slot: Slot, terms: Terms, conductor: Conductor) -> None:
        pin = slot.pin if terms.pin is None or slot.expert.remote else terms.pin
        wants_more = terms.preload.depth < slot.expert.preload.depth
        slot.change(pin=pin, expert=terms.of(slot.expert))
        if slot.successor is not None:
            slot.change(successor=terms.of(slot.successor))
        elif wants_more:
            conductor.upkeep.add(slot)

    def turn_over(self, conductor: Conductor) -> None:
        """Replace, or let go, every expert whose turn that is. One that still has a process is stopped first."""
        for slot in tuple(self._turning.values()):
            if not slot.is_done:
                continue
            if slot.tier is not Tier.DISK and not slot.expert.remote:
                conductor.begin(Plan((slot.move_to(Tier.DISK),)))
                continue
            if slot.expert.remote:
                self._tasks.own(slot.engine.stop())
            del self._turning[slot.name]
            if slot.leaves:
                self._let_go(slot, conductor)
            else:
                self._renew(slot, conductor)

    def _renew(self, slot: Slot, conductor: Conductor) -> None:
        assert slot.successor is not None, "an expert that changes has a successor"
        expert = slot.successor
        slot.become(expert, expert.max_concurrency or self._limits.max_concurrency)
        self._placed()
        self._start_to_count(slot, conductor)
        self._events.record("expert", expert=slot.name, change="changed")
        logger.info("%s: has its new settings", slot.name)

    def _let_go(self, slot: Slot, conductor: Conductor) -> None:
        name = slot.name
        for guess in Guess:
            self._guesses.end(guess, name, self._guesses.wasted)
        slot.change(tier=Tier.DISK)
        del self._slots[name]
        self._slots.former[name] = slot
        conductor.demand.forget(name)
        self._health.forget(slot)
        self._placed()
        self._events.record("expert", expert=name, change="removed")
        logger.info("%s: is gone", name)

    def _start_to_count(self, slot: Slot, conductor: Conductor) -> None:
        if not slot.expert.on_nodes:
            conductor.demand.add(slot.name)
        conductor.upkeep.add(slot)
        self._health.watch_one(slot)
