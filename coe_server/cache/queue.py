"""The queue of one expert, the share of it that an owner may take, and leases.

The order is by arrival, shifted by priority. A request waits for one lease per answer and gets all of them at once. The
first half of a queue accepts any request; in the second half an owner that already has its share of the queue is
refused. Shares do not change the order, so the wait bound is that of any queue of this length.
"""

from __future__ import annotations

import asyncio
import warnings
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, NamedTuple, Protocol

from coe_server.engines.engine import Engine
from coe_server.errors import ExpertUnavailable

Priority = Literal["high", "normal", "batch"]
WEIGHTS: dict[Priority, float] = {"high": 4.0, "normal": 1.0, "batch": 0.25}
# as a share of max_wait; batch requests are overtaken for this long at most
_HEAD_START: dict[Priority, float] = {"high": -0.5, "normal": 0.0, "batch": 0.5}


@dataclass(slots=True, order=True)
class Waiter:
    """One request in a queue; `place` is its arrival shifted by its priority; `leases` is the number it waits for."""

    place: float
    arrived: float = field(compare=False)
    weight: float = field(compare=False)
    granted: asyncio.Future[Lease] = field(compare=False)
    leases: int = field(default=1, compare=False)
    owner: Owner | None = field(default=None, compare=False)

    def keep_first(self) -> None:
        """Keep it first in its queue, where it is first now, whatever arrives."""
        self.place = float("-inf")


class WaitingLine:
    """Requests ordered by place.

    A request overtakes only those of lower priority that came at most `max_wait` earlier.
    """

    def __init__(self, max_wait_seconds: float, changed: Callable[[], object] = lambda: None) -> None:
        self._changed = changed  # called when a request enters or leaves
        self._max_wait_seconds = max_wait_seconds
        self._waiters: list[Waiter] = []
        self.arrivals: list[float] = []  # of all requests, oldest first
        self.waited_for = WaitedFor()
        self.weight = 0.0  # sum of all weights; multiples of 1/4, so that adding and subtracting is exact

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters)

    @property
    def leases(self) -> int:
        """The number of leases that all requests wait for."""
        return self.waited_for.leases

    def join(
        self,
        now: float,
        priority: Priority,
        granted: asyncio.Future[Lease],
        leases: int = 1,
        owner: Owner | None = None,
    ) -> Waiter:
        place = now + _HEAD_START[priority] * self._max_wait_seconds
        waiter = Waiter(place, now, WEIGHTS[priority], granted, leases, owner)
        insort(self._waiters, waiter)
        insort(self.arrivals, now)
        self.weight += waiter.weight
        self.waited_for.add(leases, owner)
        self._changed()
        return waiter

    def first(self, arrived_by: float = float("inf")) -> Waiter | None:
        """The next one in order, of those that had arrived then."""
        for waiter in self._waiters:
            if waiter.arrived <= arrived_by:
                return waiter
        return None

    def pop(self) -> Waiter:
        return self._take(0)

    def refuse_all(self, reason: str, retry_after_seconds: float = 1.0) -> None:
        while self:
            waiter = self.pop()
            if not waiter.granted.done():
                waiter.granted.set_exception(ExpertUnavailable(reason, retry_after_seconds))

    def leave(self, waiter: Waiter) -> bool:
        """Remove `waiter`; False if it is not in the queue."""
        for position, one in enumerate(self._waiters):
            if one is waiter:
                self._take(position)
                return True
        return False

    def _take(self, position: int) -> Waiter:
        waiter = self._waiters.pop(position)
        del self.arrivals[bisect_left(self.arrivals, waiter.arrived)]
        self.weight -= waiter.weight
        self.waited_for.add(-waiter.leases, waiter.owner)
        self._changed()
        return waiter


class Owner(NamedTuple):
    """The key on whose behalf a lease is requested; `share`, in (0, 1], applies to every queue."""

    name: str
    share: float


class WaitedFor:
    """The number of leases waited for in one queue, or in all queues, by owner."""

    def __init__(self) -> None:
        self.leases = 0
        self._by_owner: Counter[str] = Counter()

    def add(self, leases: int, owner: Owner | None) -> None:
        """Add a number of leases, which may be negative."""
        self.leases += leases
        if owner is not None:
            self._by_owner[owner.name] += leases
            if not self._by_owner[owner.name]:
                del self._by_owner[owner.name]

    def by(self, owner: Owner | None) -> int:
        return 0 if owner is None else self._by_owner[owner.name]

    def is_full(self, leases: int, limit: int) -> bool:
        """True if this many more would exceed the limit. An empty queue takes any request."""
        return self.leases > 0 and self.leases + leases > limit

    def is_over_share(self, leases: int, limit: int, owner: Owner | None) -> bool:
        """True if the owner would exceed its share and more than half of the queue would be taken.

        An owner without waiting requests is never over its share, so that each can have one request.
        """
        own = self.by(owner)
        if owner is None or not own or 2 * (self.leases + leases) <= limit:
            return False
        return own + leases > owner.share * limit


class Lender(Protocol):
    """Receives the events of a lease."""

    def give_back(self, lease: Lease) -> None:
        """The lease is released; the next request may take its place."""

    def examine(self, lease: Lease) -> Awaitable[bool]:
        """Probe the engine. Returns True if it responds; otherwise it is stopped."""

    def begins(self, lease: Lease) -> None:
        """The answer has begun."""

    def answered(self, lease: Lease) -> None:
        """The answer is complete."""


class Lease:
    """Held from the moment it is granted until `release`. Use it as a context manager."""

    def __init__(
        self,
        expert: str,
        engine: Engine,
        lender: Lender,
        gone: asyncio.Event,
        granted: float,
        waited_seconds: float = 0.0,
        leases: int = 1,
        mortal: bool = True,
    ) -> None:
        self.expert = expert
        self.engine = engine
        self.gone = gone  # set when this engine process ends
        self.granted = granted
        self.waited_seconds = waited_seconds
        self.leases = leases
        self.mortal = mortal  # false: a remote expert, whose process is not watched
        self.is_try = False  # it tries an expert after its backoff: the result decides whether others follow
        self._lender = lender
        self._held = True

    def release(self) -> None:
        """Release the lease; repeated calls have no effect."""
        held, self._held = self._held, False
        if held:
            self._lender.give_back(self)

    def suspect_engine(self) -> None:
        """Report an engine that did not respond; it is probed, and stopped if it hangs."""
        self._lender.examine(self)

    async def engine_is_alive(self) -> bool:
        """The same with a result: True if the engine responds within `Limits.probe_timeout_seconds`."""
        return await self._lender.examine(self)

    def speaks(self) -> None:
        """Report the beginning of the answer; it ends a backoff for other requests."""
        self._lender.begins(self)

    def answered(self) -> None:
        """Report a complete answer: it resets the failures, and its duration is learned."""
        self._lender.answered(self)

    async def engine_is_gone(self, within_seconds: float) -> bool:
        """True if the engine is dead; waits up to this many seconds for its death to be detected."""
        try:
            async with asyncio.timeout(within_seconds if self.mortal else 0):
                await self.gone.wait()
        except TimeoutError:
            return False
        return True

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if self._held:
            warnings.warn(f"lease of expert '{self.expert}' was never released", ResourceWarning, stacklevel=1)
