"""One expert inside the cache: where it is, who uses it, who waits for it. Decides nothing about the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil

from coe_server.cache.costs import Costs, Restarts
from coe_server.cache.health import Backoff
from coe_server.cache.planner import Move
from coe_server.cache.queue import WaitingLine
from coe_server.cache.scheduler import Queue, Retention
from coe_server.cache.tiers import Holding, Tier
from coe_server.engines.engine import Engine
from coe_server.errors import ExpertUnavailable


@dataclass(frozen=True, slots=True)
class Expert:
    """What the cache is told about an expert when it is built."""

    name: str
    engine: Engine
    pin: Tier = Tier.DISK
    preload: Tier = Tier.DISK
    ttl_seconds: float | None = None  # idle for this long: it leaves the device
    remote: bool = False  # answered elsewhere; takes no bytes here
    costs: Mapping[str, float] = field(default_factory=dict)  # measured by an earlier server, see `Costs`


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
    """A move that was carried out: seconds it took, bytes it freed or took on the device."""

    expert: str
    source: Tier
    target: Tier
    seconds: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an expert is not to be had, and until when (in the cache's clock)."""

    reason: str
    until: float


@dataclass(slots=True)
class Slot:
    """The mutable record of one expert; changed only between awaits, by the cache and its mover."""

    waiters: WaitingLine
    expert: Expert
    pin: Tier
    costs: Costs
    tier: Tier = Tier.DISK
    moving: Move | None = None
    moving_since: float | None = None  # None: it still waits for room, or in line
    let_in: tuple[float, ...] = ()  # when each lease of those who use it was granted, oldest first
    gate: int = 0  # leases that were waited for when its turn began: they are served before it may be drained
    draining: bool = False
    failure: Failure | None = None
    restarts: Restarts = field(default_factory=Restarts)
    backoff: Backoff = field(default_factory=Backoff)  # of one that is answered elsewhere, in the place of restarts
    still: asyncio.Event = field(default_factory=asyncio.Event)  # set while it is not moving
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # this life of the engine is over
    left: asyncio.Event = field(default_factory=asyncio.Event)  # it is off the device; a new one for the next time
    since: float = 0.0  # when it last came to the device
    last_used: float = 0.0
    uses: int = 0  # in all
    pushed_out: bool = False  # it left the device because somebody else needed the room
    last_move: MoveRecord | None = None

    def __setattr__(self, field: str, value: object) -> None:
        """Whatever field is set, nobody shall keep an old view of this slot: it counts as changed, like its queue."""
        object.__setattr__(self, field, value)
        self.waiters.changed()

    @classmethod
    def of(cls, expert: Expert, waiters: WaitingLine, costs: Costs) -> Slot:
        """Where an expert begins: on disk, or, if it is answered elsewhere, always at hand."""
        if expert.remote:
            return cls(waiters, expert, Tier.DEVICE, costs, tier=Tier.DEVICE)
        return cls(waiters, expert, expert.pin, costs)

    @property
    def name(self) -> str:
        return self.expert.name

    @property
    def engine(self) -> Engine:
        return self.expert.engine

    @property
    def settled(self) -> bool:
        """On the device and staying there for now."""
        return self.tier is Tier.DEVICE and self.moving is None

    @property
    def admits(self) -> bool:
        return self.settled and (not self.draining or self._gate_is_open)

    @property
    def busy(self) -> bool:
        return self.leases > 0 or self.moving is not None or (self._gate_is_open and bool(self.waiters))

    @property
    def _gate_is_open(self) -> bool:
        """What goes in next takes no more leases than those waited for when the turn began: turns grow no longer."""
        first = self.waiters.first()
        return self.gate >= (1 if first is None else first.leases)

    @property
    def waits_for_a_turn(self) -> bool:
        """Requests wait until it comes to the device, or, where it has to leave, until it comes back or may go on."""
        return bool(self.waiters) and self.moving is None and (self.tier is not Tier.DEVICE or self.draining)

    @property
    def residency(self) -> str:
        return "remote" if self.expert.remote else self.tier.value

    @property
    def state(self) -> State:
        if self.failure is not None:
            return State.FAILED
        if self.moving is not None:
            return State.STARTING if self.moving.target is Tier.DEVICE else State.DRAINING
        if self.settled and self.draining:
            return State.DRAINING
        return State(self.tier.value)

    @property
    def shares_the_device(self) -> bool:
        """Somebody else may come in its place."""
        return self.pin is not Tier.DEVICE and not self.expert.remote

    @property
    def is_leaving(self) -> bool:
        """On its way to a lower tier: it will free memory."""
        return self.moving is not None and self.moving.target.depth > self.moving.source.depth

    @property
    def is_starting(self) -> bool:
        """On its way up from disk, or in line for it."""
        return self.moving is not None and self.moving.source is Tier.DISK

    @property
    def resting_tier(self) -> Tier:
        """Where it goes when it leaves the device and nobody is short of memory."""
        return Tier.HOST if self.engine.footprint.can_sleep else Tier.DISK

    @property
    def leases(self) -> int:
        """How many are held; a request holds one for each answer it asks for."""
        return len(self.let_in)

    def use(self, now: float, leases: int = 1) -> None:
        """Count one more use."""
        self.let_in += (now,) * leases
        self.uses += 1

    def end_use(self, let_in: float, leases: int = 1) -> None:
        """One that began at that moment is over."""
        position = self.let_in.index(let_in)
        self.let_in = self.let_in[:position] + self.let_in[position + leases :]

    def makes_room(self, place: int, max_concurrency: int) -> float | None:
        """When the one was let in after whom, sooner or later, the request at this place goes in (0: the oldest
        inside; those who wait come after them). None where nobody has to end first."""
        position = place % max_concurrency
        return self.let_in[position] if position < len(self.let_in) else None

    def worth(self, retention: Retention) -> float:
        return self.last_used if retention == "lru" else float(self.uses)

    def serving_seconds(self, leases: int, max_concurrency: int) -> float:
        """Seconds in which so many have been held and given back, going by the answers so far."""
        return ceil(leases / max_concurrency) * self.costs.service

    def switch_seconds(self) -> float:
        """Measured seconds until it could answer: its own move to the device (0 if it is there)."""
        return 0.0 if self.tier is Tier.DEVICE else self.costs.move(self.tier, Tier.DEVICE)

    def seconds_left(self, now: float) -> float:
        """Of its way to the device, if it takes as long as usual."""
        begun = now if self.moving_since is None else self.moving_since
        return max(0.0, self.switch_seconds() - (now - begun))

    def queue(self) -> Queue:
        """Those who wait for it, as the scheduler sees them."""
        return Queue(self.name, self.waiters.arrivals(), self.switch_seconds(), self.waiters.mean_weight())

    def refuse_waiters(self, reason: str, retry_after_seconds: float = 1.0) -> None:
        while self.waiters:
            waiter = self.waiters.pop()
            if not waiter.granted.done():
                waiter.granted.set_exception(ExpertUnavailable(reason, retry_after_seconds))

    def holding(self, retention: Retention) -> Holding:
        """Itself as the planner sees it: where it will stand once the move under way is done."""
        return Holding(
            self.name,
            self.moving.target if self.moving else self.tier,
            self.engine.footprint,
            busy=self.busy,
            wanted=bool(self.waiters),
            leaving=self.draining,
            since=self.since,
            worth=self.worth(retention),
            pin=self.pin,
        )

    def depart(self, move: Move) -> None:
        """From now on it admits nobody, until `halt`."""
        self.moving, self.moving_since = move, None
        self.still.clear()

    def halt(self) -> None:
        """No move is under way, or one ended without getting there."""
        self.moving = None
        self.still.set()
        if self.tier is not Tier.DEVICE:
            self.left.set()
            self.left = asyncio.Event()

    def end_life(self) -> None:
        """The engine's process is over: leases of it no longer count, their holders are told."""
        self.gone.set()
        self.gone = asyncio.Event()
        self.let_in = ()
        self.gate = 0
        self.draining = False
