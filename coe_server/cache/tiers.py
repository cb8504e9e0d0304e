"""The tiers, what an expert costs in each, and the ledger of their bytes. Knows nothing of engines' processes."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from coe_server.engines.engine import Footprint


class Tier(StrEnum):
    """Where an expert's weights can be, fastest first; the fastest has the least depth."""

    depth: int

    DEVICE = "device", 0
    HOST = "host", 1
    DISK = "disk", 2

    def __new__(cls, word: str, depth: int = 0) -> Tier:  # type checkers take `Tier("host")`, a look-up, for this
        tier = str.__new__(cls, word)
        tier._value_, tier.depth = word, depth
        return tier


class Bytes(NamedTuple):
    """An amount in both accounted tiers (disk is not accounted)."""

    device: int = 0
    host: int = 0

    def __add__(self, other: Bytes) -> Bytes:  # type: ignore[override]  # amounts add up, they are not strung together
        return Bytes(self.device + other.device, self.host + other.host)

    def __sub__(self, other: Bytes) -> Bytes:
        return Bytes(self.device - other.device, self.host - other.host)

    def fits(self, capacity: Bytes) -> bool:
        return self.device <= capacity.device and self.host <= capacity.host

    def at_least(self, other: Bytes) -> Bytes:
        return Bytes(max(self.device, other.device), max(self.host, other.host))


@lru_cache(maxsize=4096)  # every pass over the experts asks for the same few
def bytes_in(footprint: Footprint, tier: Tier) -> Bytes:
    """What an expert of this footprint holds while it stands in `tier`.

    Host accounting is inclusive: process and image count while the process lives, awake or asleep, so that going
    to sleep never needs new host memory.
    """
    if tier is Tier.DISK:
        return _NOTHING
    device = footprint.device_awake if tier is Tier.DEVICE else footprint.device_asleep
    return Bytes(device, footprint.host)


_NOTHING = Bytes()


class Ledger:
    """Bytes held by each expert. Reserve before a move, settle after it is seen to be done."""

    def __init__(self, capacity: Bytes) -> None:
        self.capacity = capacity
        self.used = Bytes()
        self._held: dict[str, Bytes] = {}

    @property
    def free(self) -> Bytes:
        return self.capacity - self.used

    def held(self, expert: str) -> Bytes:
        return self._held.get(expert, Bytes())

    def reserve(self, expert: str, target: Bytes) -> None:
        """Hold the larger of now and `target` in each tier, for the time of a move."""
        self._hold(expert, self.held(expert).at_least(target))

    def settle(self, expert: str, exact: Bytes) -> None:
        """Hold exactly `exact`; for memory that is known to be taken or seen to be free."""
        self._hold(expert, exact)

    def room_for(self, expert: str, target: Bytes) -> bool:
        return (self.used - self.held(expert) + self.held(expert).at_least(target)).fits(self.capacity)

    def _hold(self, expert: str, amount: Bytes) -> None:
        after = self.used - self.held(expert) + amount
        assert after.fits(self.capacity), f"ledger over capacity: {expert} -> {amount}, {after} of {self.capacity}"
        self.used = after
        if amount == Bytes():
            self._held.pop(expert, None)
        else:
            self._held[expert] = amount
