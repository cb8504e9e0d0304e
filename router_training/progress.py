"""How a long step tells that it moves on: it walks its items through `track`. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """Gives the items back one by one, and shows `what` and how many are done."""

    def __call__(self, items: Sequence[Item], what: str) -> Iterable[Item]: ...


def in_silence(items: Sequence[Item], what: str) -> Iterable[Item]:
    """For tests and other callers without a terminal."""
    del what
    return items
