"""Pure: who stands where, as the planner sees it. A change makes a new view of what has changed, and keeps the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from coe_server.cache.tiers import Bytes, Tier, bytes_in
from coe_server.engines.engine import Footprint


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
