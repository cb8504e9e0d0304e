"""Training of routers from recorded outcomes, and how its long steps report progress."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """Yields the items one by one and reports `what` and how many are done."""

    def __call__(self, items: Sequence[Item], what: str) -> Iterable[Item]: ...


def in_silence(items: Sequence[Item], what: str) -> Iterable[Item]:
    """A `Track` that reports nothing, for tests and other callers without a terminal."""
    del what
    return items
