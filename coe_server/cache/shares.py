"""How much of a queue one owner may take, so that another one finds room. Pure.

A queue's first half is for whatever comes first. Beyond it an owner that has its share of the whole queue is refused.
The order of those who wait stays: the wait bound is that of any queue of this length.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


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
