"""Pure: the memory that an expert needs on one seat, and the evictions that free it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from coe_server.cache.tiers import Bytes, Holding, Standing, Tier, idle_tier
from coe_server.engines.engine import Footprint, Seat


class Move(NamedTuple):
    """Moves one expert from one tier to another, with its process on the cards of `seat`.

    A sleeping process is bound to its seat. To start on another seat, the expert is stopped first.
    """

    expert: str
    source: Tier
    target: Tier
    seat: Seat = (0,)

    @property
    def goes_down(self) -> bool:
        """True if the target is a slower tier, so that the move frees memory."""
        return self.target.depth > self.source.depth

    @property
    def is_start(self) -> bool:
        """True if it starts a process from disk."""
        return self.source is Tier.DISK


Worth = tuple[bool, bool, float]  # sort key over victims: the lowest leaves first

_SEVERAL = 2
NO_VICTIM = (False, False, float("-inf"))


def worth_of(holding: Holding) -> Worth:
    return not holding.leaving, holding.wanted, holding.worth


class Room:
    """The memory that an expert needs on one seat, and the evictions that free it."""

    def __init__(
        self, standing: Standing, goal: Holding, seat: Seat, capacity: Bytes, spares_sleepers: bool = False
    ) -> None:
        self.standing, self.goal, self.seat, self.capacity = standing, goal, seat, capacity
        self.short, self._host_short = _short(standing, goal, seat, capacity)
        self.device_is_short = max(self.short.values()) > 0
        self._spares_sleepers = spares_sleepers

    @property
    def is_free(self) -> bool:
        """No expert has to leave."""
        return not self.device_is_short and self._host_short <= 0

    @property
    def arrival(self) -> Move:
        """The expert comes to this seat."""
        source = self.goal.tier if self.seat == self.goal.seat else Tier.DISK
        return Move(self.goal.name, source, Tier.DEVICE, self.seat)

    @property
    def all_busy(self) -> bool:
        """True if no idle expert holds memory on this seat."""
        seat, asleep = self.seat, self.standing.held[Tier.HOST]
        return not any(map(asleep.on, seat)) and all(one.busy for one in self.standing.line(Tier.DEVICE, seat))

    def made(self, may_leave: Callable[[Holding], bool]) -> Draft | None:
        """The evictions that free enough; None if none do.

        At first only experts are considered that free the memory which is short at the beginning. If then only host
        memory is short, all are considered.
        """
        draft = self._draft(may_leave, _gains)
        if draft.lacks_only_host:
            draft = self._draft(may_leave, lambda gain: True)
        if not draft.fits:
            return None
        draft.spare_the_unneeded()
        return draft

    def _draft(self, may_leave: Callable[[Holding], bool], asks: Callable[[int], bool]) -> Draft:
        draft = Draft(self.short, self._host_short)
        for way in _WAYS_DOWN:
            for there in self._concerned(way.source, draft):
                is_spared = self._spares_sleepers and way is not _WAYS_DOWN[0] and not draft.lacks_only_host
                if draft.fits or is_spared or not draft.gains_from(self.standing.held[way.source]):
                    break
                gain = draft.gain_from(way)
                for holding in there:
                    if draft.fits:
                        break
                    if asks(gain(holding.footprint)) and may_leave(holding):
                        draft.demote(holding, way.target(holding))
        return draft

    def _concerned(self, tier: Tier, draft: Draft) -> Iterator[Sequence[Holding]]:
        """Those that could leave room: those on the seat's cards; then, if only host memory is short, all others."""
        if len(self.capacity.cards) < _SEVERAL:
            yield self.standing.line(tier)
            return
        yield self.standing.line(tier, self.seat)
        if draft.lacks_only_host:
            yield self.standing.line(tier)

    def least_worth(self, may_leave: Callable[[Holding], bool]) -> Worth | None:
        """The dearest victim on this seat is worth at least this; None where not enough can be freed on a card."""
        least = NO_VICTIM
        for card, short in self.short.items():
            if short <= 0:
                continue
            awake = [one for one in self.standing.line(Tier.DEVICE, (card,)) if may_leave(one)]
            asleep = [one for one in self.standing.line(Tier.HOST, (card,)) if may_leave(one)]
            asleep = [] if self._spares_sleepers else asleep
            of_sleepers = sum([-_change(one, Tier.HOST, one.pin)[0] for one in asleep])
            if of_sleepers + sum([-_change(one, Tier.DEVICE, one.pin)[0] for one in awake]) < short:
                return None
            first = awake[:1] if of_sleepers < short else awake[:1] + asleep[:1]
            least = max(least, min(map(worth_of, first)))
        return least

    def host_can_be_had(self, may_leave: Callable[[Holding], bool]) -> bool:
        """False where not enough host memory could be freed, whichever experts leave: the same on every seat."""
        if self._host_short <= 0:
            return True
        there = chain(self.standing.line(Tier.DEVICE), self.standing.line(Tier.HOST))
        could = sum(one.footprint.host for one in there if one.pin is Tier.DISK and may_leave(one))
        return could >= self._host_short


def _gains(gain: int) -> bool:
    return gain > 0


def _short(standing: Standing, goal: Holding, seat: Seat, capacity: Bytes) -> tuple[dict[int, int], int]:
    """Missing bytes on each card of the seat and in host memory if the goal came without evictions; negative: free."""
    awake, asleep = standing.held[Tier.DEVICE], standing.held[Tier.HOST]
    now, need = goal.held, goal.footprint.device_awake
    on_cards = {
        card: awake.on(card) + asleep.on(card) + max(0, need - now.on(card)) - capacity.on(card) for card in seat
    }
    return on_cards, awake.host + asleep.host + max(0, goal.footprint.host - now.host) - capacity.host


@dataclass(frozen=True, slots=True)
class _WayDown:
    """One kind of eviction: from `source` to `target`."""

    source: Tier
    target: Callable[[Holding], Tier]
    device_gain: Callable[[Footprint], int]  # most bytes that it can free on a card


_AWAKE, _ASLEEP, _IN_HOST = attrgetter("device_awake"), attrgetter("device_asleep"), attrgetter("host")

# cheapest first: loaded experts sleep (or stop if they cannot), then sleepers stop, then any loaded expert stops
_WAYS_DOWN = (
    _WayDown(Tier.DEVICE, lambda one: idle_tier(one.footprint), _AWAKE),
    _WayDown(Tier.HOST, lambda _: Tier.DISK, _ASLEEP),
    _WayDown(Tier.DEVICE, lambda _: Tier.DISK, _AWAKE),
)


class Draft:
    """A plan under construction: the experts to evict, and the memory that is still missing."""

    def __init__(self, short: Mapping[int, int], host_short: int) -> None:
        self.short = dict(short)  # card -> bytes
        self._device_is_short = max(short.values()) > 0
        self._host_short = host_short
        self._lowered: dict[str, tuple[Holding, Tier]] = {}

    @property
    def fits(self) -> bool:
        return not self._device_is_short and self._host_short <= 0

    @property
    def lacks_only_host(self) -> bool:
        return self._host_short > 0 and not self._device_is_short

    def gain_from(self, way: _WayDown) -> Callable[[Footprint], int]:
        """A function: footprint -> most bytes that this eviction frees of the memory that is short now."""
        return way.device_gain if self._device_is_short else _IN_HOST

    def gains_from(self, held: Bytes) -> bool:
        """True if `held` includes memory that is short now."""
        if self._device_is_short:
            return any(short > 0 and held.on(card) > 0 for card, short in self.short.items())
        return held.host > 0

    def demote(self, holding: Holding, tier: Tier) -> None:
        """Evict `holding` to `tier` if its pin allows it and that frees memory that is short now."""
        now = self._tier(holding)
        if tier.depth > holding.pin.depth or tier.depth <= now.depth:
            return
        on_card, host = _change(holding, now, tier)
        gain = on_card if self._device_is_short else host
        if gain < 0 and (not self._device_is_short or any(self.short.get(card, 0) > 0 for card in holding.seat)):
            self._place(holding, tier, on_card, host)

    def spare_the_unneeded(self) -> None:
        """Undo evictions that the plan does not need, the most valuable expert first."""
        if len(self._lowered) == 1:  # needed: without it the goal did not fit
            return
        lowered = [holding for holding, _ in self._lowered.values()]
        for holding in sorted(lowered, key=lambda h: (h.wanted, h.worth), reverse=True):
            chosen = self._tier(holding)
            for tier in (holding.tier, Tier.HOST):
                if tier.depth < chosen.depth and (tier is holding.tier or holding.footprint.can_sleep):
                    on_card, host = _change(holding, chosen, tier)
                    self._place(holding, tier, on_card, host)
                    if self.fits:
                        break
                    self._place(holding, chosen, -on_card, -host)

    def moves(self) -> tuple[Move, ...]:
        return tuple(Move(h.name, h.tier, tier, h.seat) for h, tier in self._lowered.values() if h.tier is not tier)

    def _tier(self, holding: Holding) -> Tier:
        return self._lowered[holding.name][1] if holding.name in self._lowered else holding.tier

    def _place(self, holding: Holding, tier: Tier, on_card: int, host: int) -> None:
        for card in holding.seat:
            if card in self.short:
                self.short[card] += on_card
        self._device_is_short = max(self.short.values()) > 0
        self._host_short += host
        self._lowered[holding.name] = (holding, tier)


def _change(holding: Holding, now: Tier, then: Tier) -> tuple[int, int]:
    """Change in bytes on each of its cards, and in host memory."""
    footprint = holding.footprint
    process = (then is not Tier.DISK) - (now is not Tier.DISK)  # 1: starts, -1: ends
    return _on_each(footprint, then) - _on_each(footprint, now), process * footprint.host


def _on_each(footprint: Footprint, tier: Tier) -> int:
    """Bytes held on each card of the seat."""
    if tier is Tier.DISK:
        return 0
    return footprint.device_awake if tier is Tier.DEVICE else footprint.device_asleep
