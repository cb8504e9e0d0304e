"""How many bytes of bodies requests hold at a time, all together and those of one key. Refused before they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from coe_server.errors import BodiesFull, RateLimited
from coe_server.keys import Key

HOLD = "coe.body"  # in a request's scope: the `Hold` of its body
PART_OF_A_KEY = 4  # a key may hold a quarter
_SOON_SECONDS = 1.0


class BodyLimits(NamedTuple):
    """`largest_bytes` is what one body may be: a key may always send one."""

    all_bytes: int
    largest_bytes: int

    @property
    def of_a_key_bytes(self) -> int:
        return max(self.all_bytes // PART_OF_A_KEY, self.largest_bytes)


class Bodies:
    """Counts by a key's name; `limits` gives those in charge now."""

    def __init__(self, limits: Callable[[], BodyLimits]) -> None:
        self.held_bytes = 0
        self._by_key: Counter[str] = Counter()
        self._limits = limits

    def hold(self, key: Key | None) -> Hold:
        """For one request; whatever it comes to hold is given back with `release`."""
        return Hold(self, None if key is None else key.name)

    def take(self, size_bytes: int, key_name: str | None) -> None:
        """So many more. Raises RateLimited for a key that holds its part, BodiesFull where all is held."""
        limits = self._limits()
        if key_name is not None and self._by_key[key_name] + size_bytes > limits.of_a_key_bytes:
            raise RateLimited(
                f"key '{key_name}' may have {limits.of_a_key_bytes:,} bytes of bodies in progress at a time "
                "(of http.bodies)",
                _SOON_SECONDS,
            )
        if self.held_bytes + size_bytes > limits.all_bytes:
            raise BodiesFull(
                f"requests in progress hold {self.held_bytes:,} of {limits.all_bytes:,} bytes of bodies (http.bodies)"
            )
        self._count(size_bytes, key_name)

    def give_back(self, size_bytes: int, key_name: str | None) -> None:
        self._count(-size_bytes, key_name)

    def _count(self, size_bytes: int, key_name: str | None) -> None:
        self.held_bytes += size_bytes
        if key_name is not None:
            self._by_key[key_name] += size_bytes
            if not self._by_key[key_name]:
                del self._by_key[key_name]


class Hold:
    """The bytes of one request's body, from what it announces to the end of its answer."""

    def __init__(self, bodies: Bodies, key_name: str | None) -> None:
        self._bodies = bodies
        self._key_name = key_name
        self._size_bytes = 0

    def reach(self, size_bytes: int) -> None:
        """The body is that long, or will be. Raises what `Bodies.take` raises."""
        more = size_bytes - self._size_bytes
        if more > 0:
            self._bodies.take(more, self._key_name)
            self._size_bytes = size_bytes

    def release(self) -> None:
        """The request is over; saying so twice is harmless."""
        size_bytes, self._size_bytes = self._size_bytes, 0
        self._bodies.give_back(size_bytes, self._key_name)
