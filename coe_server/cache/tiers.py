"""Pure: the tiers, the bytes that an expert holds in each, their ledger, and where every expert is (the standing)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import chain
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


class Holding(NamedTuple):
    """One expert as the planner sees it. Every change of an expert makes a new one, so it must be quick to make."""

    name: str
    tier: Tier
    footprint: Footprint
    busy: bool = False  # leased or moving: it must stay where it is
    wanted: bool = False  # requests wait for it: others leave first
    leaving: bool = False  # it drains already: it leaves before anybody else is asked to
    since: float = float("-inf")  # when it came to the device, in the clock of the caller
    worth: float = 0.0  # the lowest leaves first: when it was last used, or how often
    pin: Tier = Tier.DISK  # never below this tier

    @property
    def held(self) -> Bytes:
        return bytes_in(self.footprint, self.tier)

    @property
    def takes_part(self) -> bool:
        """False for an expert that is idle on disk: no plan can touch it."""
        return self.wanted or self.busy or self.tier is not Tier.DISK


@dataclass(frozen=True, slots=True)
class Standing:
    """Who stands in which tier, and what all of them hold. A change makes a new one and costs what has changed."""

    tiers: Mapping[Tier, Mapping[str, Holding]]
    held: Mapping[Tier, Bytes]

    @classmethod
    def of(cls, holdings: Iterable[Holding]) -> Standing:
        return cls({tier: {} for tier in Tier}, {tier: Bytes() for tier in Tier}).updated(holdings)

    @property
    def used(self) -> Bytes:
        return self.held[Tier.DEVICE] + self.held[Tier.HOST]  # nobody holds anything on disk

    def holding(self, name: str) -> Holding | None:
        """What is known of an expert; None if it takes no part."""
        return _look_up(self.tiers, name)

    def __iter__(self) -> Iterator[Holding]:
        return chain.from_iterable(tier.values() for tier in self.tiers.values())

    def updated(self, changed: Iterable[Holding]) -> Standing:
        """The same with these instead of what was known of them."""
        draft = _Changes(self)
        for holding in changed:
            draft.put(holding)
        return Standing(draft.tiers, draft.held)


def _look_up(tiers: Mapping[Tier, Mapping[str, Holding]], name: str) -> Holding | None:
    for tier in tiers.values():
        if name in tier:
            return tier[name]
    return None


class _Changes:
    """A standing in the making; of the old one's tiers only those are copied in which something changes."""

    def __init__(self, before: Standing) -> None:
        self.tiers = dict(before.tiers)
        self.held = dict(before.held)
        self._before = before

    def put(self, holding: Holding) -> None:
        name = holding.name
        known = _look_up(self.tiers, name)
        if known == holding:
            return
        stays = holding.takes_part
        if known is not None and stays and known.tier is holding.tier and known.footprint is holding.footprint:
            self._own(known.tier)[name] = holding  # it holds what it held
            return
        if known is not None:
            del self._own(known.tier)[name]
            self.held[known.tier] -= known.held
        if stays:
            self._own(holding.tier)[name] = holding
            self.held[holding.tier] += holding.held

    def _own(self, tier: Tier) -> dict[str, Holding]:
        there = self.tiers[tier]
        if there is self._before.tiers[tier]:
            there = self.tiers[tier] = dict(there)
        assert isinstance(there, dict)
        return there
