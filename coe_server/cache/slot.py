"""One expert inside the cache: where it is, who uses it, who waits for it. Decides nothing about the others."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from coe_server.cache.lease import Lease
from coe_server.cache.planner import Holding, Move
from coe_server.cache.tiers import Tier
from coe_server.engines.engine import Engine


@dataclass(frozen=True, slots=True)
class Expert:
    """What the cache is told about an expert when it is built."""

    name: str
    engine: Engine
    pin: Tier = Tier.DISK
    preload: Tier = Tier.DISK
    ttl_seconds: float | None = None  # idle for this long: it leaves the device
    remote: bool = False  # answered elsewhere; takes no bytes here


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
class Waiter:
    """One request in the queue of an expert."""

    arrived: float
    granted: asyncio.Future[Lease]


class Costs:
    """Seconds of each kind of move: guesses until measured, then an exponential mean of what was measured."""

    _GUESSES: ClassVar = {"start": 30.0, "wake": 1.0, "sleep": 1.0, "stop": 2.0}
    _NEWEST_SHARE = 0.3

    def __init__(self) -> None:
        self._measured: dict[str, float] = {}

    def learn(self, source: Tier, target: Tier, seconds: float) -> None:
        kind = _kind(source, target)
        known = self._measured.get(kind, seconds)
        self._measured[kind] = known + self._NEWEST_SHARE * (seconds - known)

    def of(self, source: Tier, target: Tier) -> float:
        kind = _kind(source, target)
        return self._measured.get(kind, self._GUESSES[kind])


def _kind(source: Tier, target: Tier) -> str:
    match source, target:
        case Tier.DISK, _:
            return "start"
        case _, Tier.DEVICE:
            return "wake"
        case _, Tier.HOST:
            return "sleep"
        case _:
            return "stop"


@dataclass(slots=True)
class Slot:
    """The mutable record of one expert; changed only between awaits, by the cache and its mover."""

    expert: Expert
    tier: Tier = Tier.DISK
    moving: Move | None = None
    leases: int = 0
    gate: int = 0  # waiters that were there when its turn began: they are served before it may be drained
    draining: bool = False
    waiters: deque[Waiter] = field(default_factory=deque)
    failure: Failure | None = None
    failures: int = 0  # in a row, without an answer in between
    still: asyncio.Event = field(default_factory=asyncio.Event)  # set while it is not moving
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # this life of the engine is over
    credit: float = 0.0
    uses: int = 0
    last_used: float = 0.0
    costs: Costs = field(default_factory=Costs)
    last_move: MoveRecord | None = None

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
        return self.settled and (not self.draining or self.gate > 0)

    @property
    def busy(self) -> bool:
        return self.leases > 0 or self.moving is not None or (self.gate > 0 and bool(self.waiters))

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

    def holding(self) -> Holding:
        """Itself as the planner sees it: where it will stand once the move under way is done."""
        return Holding(
            self.name,
            self.moving.target if self.moving else self.tier,
            self.engine.footprint,
            busy=self.busy,
            wanted=bool(self.waiters),
            worth=self.credit,
            pin=self.expert.pin,
        )

    def depart(self, move: Move) -> None:
        """From now on it admits nobody, until `halt`."""
        self.moving = move
        self.still.clear()

    def halt(self) -> None:
        """No move is under way, or one ended without getting there."""
        self.moving = None
        self.still.set()

    def end_life(self) -> None:
        """The engine's process is over: leases of it no longer count, their holders are told."""
        self.gone.set()
        self.gone = asyncio.Event()
        self.leases = 0
        self.gate = 0
        self.draining = False
