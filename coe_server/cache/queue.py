"""The queue of one expert, how much of it one owner may take, and the lease that a request waits for.

Oldest first, urgent requests a little earlier. A request waits for one lease for each answer it asks for, and none is
granted before it. The first half of a queue takes any request; beyond it an owner that has its share of the whole
queue is refused. Shares leave the order alone: the wait bound is that of any queue of this length.
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
_HEAD_START: dict[Priority, float] = {"high": -0.5, "normal": 0.0, "batch": 0.5}  # of max_wait: so a batch request ages


@dataclass(slots=True, order=True)
class Waiter:
    """One request in a queue; `place` is its arrival, shifted by its priority; `leases` are what it waits for."""

    place: float
    arrived: float = field(compare=False)
    weight: float = field(compare=False)
    granted: asyncio.Future[Lease] = field(compare=False)
    leases: int = field(default=1, compare=False)
    owner: Owner | None = field(default=None, compare=False)


class WaitingLine:
    """Ordered by place. Everyone overtakes only those who came up to `max_wait` earlier with less priority."""

    def __init__(self, max_wait_seconds: float, changed: Callable[[], object] = lambda: None) -> None:
        self._changed = changed  # called when a request has come or gone
        self._max_wait_seconds = max_wait_seconds
        self._waiters: list[Waiter] = []
        self._arrivals: list[float] = []  # oldest first
        self.waited_for = WaitedFor()
        self._weight = 0.0  # of all together; a sum of fourths, so that nothing is lost by adding and taking away

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters)

    @property
    def leases(self) -> int:
        """That all together wait for."""
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
        insort(self._arrivals, now)
        self._weight += waiter.weight
        self.waited_for.add(leases, owner)
        self._changed()
        return waiter

    def first(self) -> Waiter | None:
        return self._waiters[0] if self._waiters else None

    def keep_first(self) -> None:
        """The first one is not overtaken any more, whatever comes: it holds the door until it has room."""
        self._waiters[0].place = _AT_THE_DOOR

    def pop(self) -> Waiter:
        return self._take(0)

    def refuse_all(self, reason: str, retry_after_seconds: float = 1.0) -> None:
        while self:
            waiter = self.pop()
            if not waiter.granted.done():
                waiter.granted.set_exception(ExpertUnavailable(reason, retry_after_seconds))

    def leave(self, waiter: Waiter) -> bool:
        """Take `waiter` out; False if it is not here any more."""
        for position, one in enumerate(self._waiters):
            if one is waiter:
                self._take(position)
                return True
        return False

    @property
    def oldest(self) -> float:
        """When the first of those who wait came; there must be one."""
        return self._arrivals[0]

    def arrivals(self) -> tuple[float, ...]:
        """When those who wait came, oldest first."""
        return tuple(self._arrivals)

    def mean_weight(self) -> float:
        return self._weight / len(self._waiters)

    def _take(self, position: int) -> Waiter:
        waiter = self._waiters.pop(position)
        del self._arrivals[bisect_left(self._arrivals, waiter.arrived)]
        self._weight -= waiter.weight
        self.waited_for.add(-waiter.leases, waiter.owner)
        self._changed()
        return waiter


_AT_THE_DOOR = float("-inf")


class Owner(NamedTuple):
    """What a lease is asked for by; `share`, above 0 and at most 1, is that of every queue."""

    name: str
    share: float


class WaitedFor:
    """The leases that are waited for in one queue, or in all of them, and by which owner."""

    def __init__(self) -> None:
        self.leases = 0
        self._by_owner: Counter[str] = Counter()

    def add(self, leases: int, owner: Owner | None) -> None:
        """Count so many more; a negative number takes them away again."""
        self.leases += leases
        if owner is not None:
            self._by_owner[owner.name] += leases
            if not self._by_owner[owner.name]:
                del self._by_owner[owner.name]

    def by(self, owner: Owner | None) -> int:
        return 0 if owner is None else self._by_owner[owner.name]

    def is_full(self, leases: int, limit: int) -> bool:
        """Whether there is no room for so many more. An empty queue takes any request: it is no longer than that."""
        return self.leases > 0 and self.leases + leases > limit

    def is_over_share(self, leases: int, limit: int, owner: Owner | None) -> bool:
        """Whether an owner would have more than its share, and more than half of the queue would be taken.

        An owner with nothing waiting is never over its share: so each has one request.
        """
        own = self.by(owner)
        if owner is None or not own or 2 * (self.leases + leases) <= limit:
            return False
        return own + leases > owner.share * limit


class Lender(Protocol):
    """What a lease tells the cache."""

    def give_back(self, lease: Lease) -> None:
        """It is over: the next request may have its place."""

    def examine(self, lease: Lease) -> Awaitable[bool]:
        """Its engine is suspected: whether it responds. One that does not is stopped."""

    def begins(self, lease: Lease) -> None:
        """Its answer has begun."""

    def answered(self, lease: Lease) -> None:
        """It gave a whole answer."""


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
        self.gone = gone  # set when this life of the engine is over
        self.granted = granted
        self.waited_seconds = waited_seconds
        self.leases = leases
        self.mortal = mortal  # false: it is answered elsewhere, and its process is not ours to watch
        self.is_try = False  # of an expert whose backoff is over: how it ends says whether others follow
        self._lender = lender
        self._held = True

    def release(self) -> None:
        """Give it back; doing so twice is harmless."""
        held, self._held = self._held, False
        if held:
            self._lender.give_back(self)

    def suspect_engine(self) -> None:
        """The engine did not respond: have it examined, and stopped if it hangs."""
        self._lender.examine(self)

    async def engine_is_alive(self) -> bool:
        """The same, for a caller that needs to know: whether it responds within `Limits.sign_of_life_seconds`."""
        return await self._lender.examine(self)

    def speaks(self) -> None:
        """The answer has begun: requests that were kept away from the expert may come."""
        self._lender.begins(self)

    def answered(self) -> None:
        """The answer is whole: earlier failures are forgiven, and how long it took is learned."""
        self._lender.answered(self)

    async def engine_is_gone(self, within_seconds: float) -> bool:
        """Whether the engine behind this lease turns out to be dead; waits that long to learn it."""
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
