"""The slots of all experts, by name: the first one of each, and the seats of those that are pinned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType

from coe_server.cache.costs import Costs
from coe_server.cache.pins import pinned, seated
from coe_server.cache.policy import Limits
from coe_server.cache.queue import WaitingLine
from coe_server.cache.slot import Expert, Slot
from coe_server.cache.tiers import Bytes, Holding, Tier
from coe_server.errors import UnknownModel


class Slots(dict[str, Slot]):
    """Every expert's slot by its name, in the order of the configuration.

    `bases`: further names, of experts that share another's engine (presets, adapters), each with the name of that one.
    They find its slot; iteration meets each slot once. `former`: names that were removed, each with its last slot, for
    requests that chose it before.
    """

    def __init__(self, slots: Iterable[tuple[str, Slot]] = (), bases: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(slots)
        self.bases = bases
        self.former: dict[str, Slot] = {}

    def __missing__(self, name: str) -> Slot:
        if (base := self.bases.get(name)) is not None:
            return self[base]
        if (last := self.former.get(name)) is not None:
            return last
        raise self.unknown(name)

    def present(self, name: str) -> Slot:
        """The slot of an expert that is there, perhaps on its way out. Raises UnknownModel."""
        slot = self[name]
        if self.get(slot.name) is not slot:
            raise self.unknown(name)
        return slot

    def unknown(self, name: str) -> UnknownModel:
        known = (*(slot.name for slot in self.values() if not slot.leaves), *self.bases)
        return UnknownModel(f"unknown expert '{name}'; known: {', '.join(known)}", "model")

    def measured_costs(self) -> dict[str, dict[str, float]]:
        """Expert -> kind of cost -> measured seconds, in the form of `Expert.costs`."""
        return {slot.name: slot.costs.measured for slot in self.values()}

    def put_in_order(self, names: Iterable[str]) -> None:
        """Let iteration follow these names; other slots come after them."""
        for name in (*names, *(other for other in self if other not in set(names))):
            if (slot := self.pop(name, None)) is not None:
                self[name] = slot


def new_slot(expert: Expert, limits: Limits, changes: dict[str, None]) -> Slot:
    """An expert's first slot: on disk or, if remote, always available."""
    waiters = WaitingLine(limits.max_wait_seconds, partial(changes.setdefault, expert.name))
    place = Tier.DEVICE if expert.remote else Tier.DISK
    pin = Tier.DEVICE if expert.remote else expert.pin
    seats, places = expert.seats, expert.max_concurrency or limits.max_concurrency
    seat = seats[0] if seats else ()
    slot = Slot(waiters, expert, pin, Costs(expert.costs), changes, seats, seat, places, tier=place)
    slot.change()
    return slot


def at_its_pin(slot: Slot, pin: Tier, moved_from: int | None = None) -> Holding:
    """The expert in the tier of its pin: on the cards of its process, or on any of its seats if it has none."""
    lives = not slot.expert.remote and (slot.tier is not Tier.DISK or slot.moving is not None)
    seat = slot.seat if slot.moving is None else slot.moving.seat
    stays = seat if lives and moved_from not in seat else None
    return pinned(slot.name, slot.engine.footprint, pin, slot.expert.seats, stays)


def place_pinned(slots: Mapping[str, Slot], capacity: Bytes, moved_from: int | None = None) -> None:
    """Assign each pinned expert one seat, so that all fit together; other experts may use any of their seats."""
    placed = seated([at_its_pin(slot, slot.pin, moved_from) for slot in slots.values()], capacity)
    for slot, holding in zip(slots.values(), placed, strict=True):
        seats = slot.expert.seats if slot.pin is Tier.DISK or slot.expert.remote else holding.seats
        if seats != slot.seats:
            slot.change(seats=seats)
