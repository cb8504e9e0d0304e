"""The requests that wait for one expert: oldest first, the urgent a little earlier. Grants nothing by itself.

A request waits for as many leases as it asks for answers; what has room for fewer goes on waiting, and nothing goes in
before it.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from coe_server.cache.lease import Lease
from coe_server.cache.shares import Owner, WaitedFor

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

    def __init__(self, max_wait_seconds: float) -> None:
        self.changed: Callable[[], None] = _nobody_looks  # called whenever somebody has come or gone
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
        self.changed()
        return waiter

    def first(self) -> Waiter | None:
        return self._waiters[0] if self._waiters else None

    def keep_first(self) -> None:
        """The first one is not overtaken any more, whatever comes: it holds the door until it has room."""
        self._waiters[0].place = _AT_THE_DOOR

    def pop(self) -> Waiter:
        return self._take(0)

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
        self.changed()
        return waiter


_AT_THE_DOOR = float("-inf")


def _nobody_looks() -> None:
    pass
