"""One expert in the cache: its tier, leases and waiting requests. Makes no decision about other experts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from coe_server.cache.backoff import Backoff, Failure, Restarts
from coe_server.cache.costs import Costs
from coe_server.cache.evictions import Move
from coe_server.cache.queue import Waiter, WaitingLine
from coe_server.cache.tiers import Tier
from coe_server.engines.engine import Engine, Seat


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

    waiters: WaitingLine
    expert: Expert
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
    name: str = field(init=False)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.engine = self.expert.name, self.expert.engine

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
    def next_waiter(self) -> Waiter | None:
        """The next request to admit. While it has a successor, none that came later than that was named."""
        return self.waiters.first() if self.successor is None else self.waiters.first(self.renewed_at)

    @property
    def is_done(self) -> bool:
        """True if its present engine has nothing left to do before its successor comes, or before it leaves."""
        if self.leases or self.moving is not None:
            return False
        if self.leaves:
            return not self.waiters
        return self.successor is not None and (self.tier is Tier.DISK or not self.owes)

    @property
    def busy(self) -> bool:
        return self.leases > 0 or self.moving is not None or (self._gate_is_open and bool(self.waiters))

    @property
    def _gate_is_open(self) -> bool:
        """True if the next request belongs to this turn: only leases waited for when the turn began do."""
        first = self.waiters.first()
        return self.gate >= (1 if first is None else first.leases)

    @property
    def waits_for_a_turn(self) -> bool:
        """True if requests wait for its load or, if it drains, for its return."""
        may_move = self.moving is None and not self.restarting
        return bool(self.waiters) and may_move and (self.tier is not Tier.DEVICE or self.draining)

    @property
    def residency(self) -> str:
        return "remote" if self.expert.remote else self.tier.value

    @property
    def idle_tier(self) -> Tier:
        """The tier to which it moves when it is evicted and host memory is sufficient."""
        return Tier.HOST if self.engine.footprint.can_sleep else Tier.DISK

    @property
    def leases(self) -> int:
        """The number of held leases; a request holds one per answer."""
        return len(self.let_in)

    def change(self, **fields: Any) -> None:
        """Set these fields and note the change."""
        for name, value in fields.items():
            setattr(self, name, value)
        self.changes[self.name] = None

    def use(self, now: float, leases: int = 1) -> None:
        """Count one more use."""
        self.change(let_in=(*self.let_in, *(now,) * leases), uses=self.uses + 1)

    def end_use(self, let_in: float, leases: int = 1) -> None:
        """Remove a lease that was granted at that moment."""
        at = self.let_in.index(let_in)
        self.change(let_in=self.let_in[:at] + self.let_in[at + leases :])

    def move_to(self, target: Tier) -> Move:
        """The move from its tier to `target`, on its present cards."""
        return Move(self.name, self.tier, target, self.seat)

    def touches(self, card: int) -> bool:
        """True if its process is on that card, or will be after its move."""
        going_there = self.moving is not None and card in self.moving.seat
        return going_there or (self.tier is not Tier.DISK and card in self.seat)

    def switch_seconds(self) -> float:
        """Measured seconds of its move to the device; 0 if it is there."""
        return 0.0 if self.tier is Tier.DEVICE else self.costs.move(self.tier, Tier.DEVICE)

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


def seconds_left(slot: Slot, now: float) -> float:
    """Seconds until it is on the device, if the move takes as long as usual."""
    begun = now if slot.moving_since is None else slot.moving_since
    return max(0.0, slot.switch_seconds() - (now - begun))


def state_of(slot: Slot) -> State:
    if slot.failure is not None:
        return State.FAILED
    if slot.moving is not None:
        return State.STARTING if slot.moving.target is Tier.DEVICE else State.DRAINING
    if slot.settled and (slot.draining or slot.leaves or slot.successor is not None) and not slot.expert.remote:
        return State.DRAINING
    return State(slot.tier.value)


def shares_the_device(slot: Slot) -> bool:
    """True if another expert may take its place on the device."""
    return slot.pin is not Tier.DEVICE and not slot.expert.remote
