"""One expert in the cache: its tier, leases and waiting requests. Makes no decision about other experts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any

from coe_server.cache.backoff import Backoff, Failure, Restarts
from coe_server.cache.costs import Costs
from coe_server.cache.evictions import Move
from coe_server.cache.pins import pinned, seated
from coe_server.cache.policy import Limits
from coe_server.cache.queue import WaitingLine
from coe_server.cache.tiers import Bytes, Holding, Tier
from coe_server.engines.engine import Engine, Seat
from coe_server.errors import UnknownModel


@dataclass(frozen=True, slots=True)
class Expert:
    """An expert's constant settings in the cache. Its process takes `width` cards, those of one of `seats`.

    Seats are in order of preference.
    """

    name: str
    engine: Engine
    pin: Tier = Tier.DISK
    preload: Tier = Tier.DISK
    ttl_seconds: float | None = None  # idle time after which it is evicted
    remote: bool = False  # served by another machine; uses no memory here
    costs: Mapping[str, float] = field(default_factory=dict)  # measured by an earlier server, see `Costs`
    width: int = 1
    seats: tuple[Seat, ...] = ((0,),)
    max_concurrency: int | None = None  # leases at a time; None: `Limits.max_concurrency`
    on_nodes: bool = False  # remote, and its nodes count failures and queue: neither happens here


class State(StrEnum):
    """`disk -> starting -> device <-> draining -> host`, plus `failed`."""

    DISK = "disk"
    STARTING = "starting"
    DEVICE = "device"
    DRAINING = "draining"
    HOST = "host"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """A completed move: its seconds, and the device bytes that it freed or took."""

    expert: str
    source: Tier
    target: Tier
    seconds: float
    size_bytes: int


@dataclass(slots=True)
class Slot:
    """The mutable record of one expert, changed only between awaits.

    Its methods note each change in `changes` for the overview; fields that are set directly appear in no view.
    """

    name: str
    waiters: WaitingLine
    expert: Expert
    engine: Engine
    pin: Tier
    costs: Costs
    changes: dict[str, None]  # names of the slots that have changed, in order
    seats: tuple[Seat, ...]  # where it may start; a pinned expert has one
    seat: Seat  # the cards of its process, or of its last one
    places: int  # leases at a time
    tier: Tier = Tier.DISK
    moving: Move | None = None
    moving_since: float | None = None  # None: the move still waits for memory or its turn
    let_in: tuple[float, ...] = ()  # when each held lease was granted, oldest first
    gate: int = 0  # leases waited for when its turn began: they are served before it may be drained
    draining: bool = False
    restarting: bool = False  # an operator's restart waits for its answers in progress: no request is admitted
    failure: Failure | None = None
    restarts: Restarts = field(default_factory=Restarts)
    backoff: Backoff = field(default_factory=Backoff)  # for a remote expert, instead of restarts
    up: asyncio.Event = field(default_factory=asyncio.Event)  # set while its engine runs
    still: asyncio.Event = field(default_factory=asyncio.Event)  # set while it is not moving
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # set when this engine process ends
    # set when it leaves the device, then replaced by a new event
    left: asyncio.Event = field(default_factory=asyncio.Event)
    since: float = 0.0  # when it reached its tier
    last_used: float = 0.0
    uses: int = 0  # leases granted so far
    pushed_out: bool = False  # it was evicted because another expert needed the memory
    successor: Expert | None = None  # what it becomes at the next `become`: a reload has changed its engine
    renewed_at: float = 0.0  # when the successor was named: requests that waited then get the present engine
    leaves: bool = False  # a reload has removed it: it finishes what it has
    last_move: MoveRecord | None = None

    @property
    def settled(self) -> bool:
        """True if it is on the device and does not move."""
        return self.tier is Tier.DEVICE and self.moving is None

    @property
    def admits(self) -> bool:
        stays = self.successor is None or self.owes
        return self.settled and stays and not self.restarting and (not self.draining or self._gate_is_open)

    @property
    def owes(self) -> bool:
        """True if requests wait that its present engine is to answer, although it has a successor."""
        return bool(self.waiters) and self.waiters.arrivals[0] <= self.renewed_at

    @property
    def busy(self) -> bool:
        return self.leases > 0 or self.moving is not None or (bool(self.waiters) and self._gate_is_open)

    @property
    def _gate_is_open(self) -> bool:
        """True if the next request belongs to this turn: only leases waited for when the turn began do."""
        first = self.waiters.first()
        return self.gate >= (1 if first is None else first.leases)

    @property
    def leases(self) -> int:
        """The number of held leases; a request holds one per answer."""
        return len(self.let_in)

    def change(self, **fields: Any) -> None:
        """Set these fields and note the change."""
        for name, value in fields.items():
            setattr(self, name, value)
        self.changes[self.name] = None

    def move_to(self, target: Tier) -> Move:
        """The move from its tier to `target`, on its present cards."""
        return Move(self.name, self.tier, target, self.seat)

    def touches(self, card: int) -> bool:
        """True if its process is on that card, or will be after its move."""
        going_there = self.moving is not None and card in self.moving.seat
        return going_there or (self.tier is not Tier.DISK and card in self.seat)

    def depart(self, move: Move) -> None:
        """Begin a move: admit no request until `halt`."""
        self.change(moving=move, moving_since=None)
        self.still.clear()

    def halt(self) -> None:
        """End the move, completed or not."""
        self.change(moving=None)
        self.still.set()
        if self.tier is not Tier.DEVICE:
            self.left.set()
            self.left = asyncio.Event()

    def become(self, expert: Expert, places: int) -> None:
        """Take over the settings and the engine of its successor. Costs and failures of the last engine do not count.

        A pin that an operator set stays, unless the new engine is never in that tier.
        """
        pin = self.pin if self.pin is not Tier.HOST or expert.engine.footprint.can_sleep else expert.pin
        if expert.remote or self.expert.remote:
            pin = Tier.DEVICE if expert.remote else expert.pin
        self.expert, self.engine, self.successor = expert, expert.engine, None
        self.costs, self.restarts, self.backoff = Costs(expert.costs), Restarts(), Backoff()
        self.seats, self.seat = expert.seats, expert.seats[0] if expert.seats else ()
        tier = Tier.DEVICE if expert.remote else Tier.DISK
        self.change(pin=pin, tier=tier, places=places, failure=None, gate=0, draining=False, pushed_out=self.uses > 0)

    def end_life(self) -> None:
        """The engine process has ended: its leases no longer count, and their holders are notified."""
        self.up.clear()
        self.gone.set()
        self.gone = asyncio.Event()
        self.change(tier=Tier.DISK, let_in=(), gate=0, draining=False, restarting=False)


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
    costs = Costs(expert.costs)
    slot = Slot(expert.name, waiters, expert, expert.engine, pin, costs, changes, seats, seat, places, tier=place)
    slot.change()
    return slot


def seconds_left(slot: Slot, now: float) -> float:
    """Seconds until it is on the device, if the move takes as long as usual."""
    begun = now if slot.moving_since is None else slot.moving_since
    return max(0.0, slot.costs.move(slot.tier, Tier.DEVICE) - (now - begun))


def residency_of(slot: Slot) -> str:
    return "remote" if slot.expert.remote else slot.tier.value


def state_of(slot: Slot) -> State:
    if slot.failure is not None:
        return State.FAILED
    if slot.moving is not None:
        return State.STARTING if slot.moving.target is Tier.DEVICE else State.DRAINING
    if slot.settled and (slot.draining or slot.leaves or slot.successor is not None) and not slot.expert.remote:
        return State.DRAINING
    return State(slot.tier.value)


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
