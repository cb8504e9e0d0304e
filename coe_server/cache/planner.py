"""Pure: which moves bring one expert to the device, and which experts pins leave no room for. Values in, values out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop
from operator import attrgetter
from typing import NamedTuple

from coe_server.cache.tiers import Bytes, Holding, Standing, Tier, bytes_in
from coe_server.engines.engine import Footprint


class Move(NamedTuple):
    """One expert from one tier to another."""

    expert: str
    source: Tier
    target: Tier

    @property
    def goes_down(self) -> bool:
        """To a lower tier: it will free memory."""
        return self.target.depth > self.source.depth

    @property
    def is_start(self) -> bool:
        """From disk up, or in line for it."""
        return self.source is Tier.DISK


@dataclass(frozen=True, slots=True)
class Plan:
    """These moves, in this order, end with the expert on the device."""

    moves: tuple[Move, ...]

    @property
    def victims(self) -> tuple[str, ...]:
        """The experts that leave the device to make room."""
        return tuple(move.expert for move in self.moves if move.source is Tier.DEVICE)


@dataclass(frozen=True, slots=True)
class NotYet:
    """Possible as soon as those of `leaving` that are busy no longer are, if the others stay idle."""

    leaving: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Never:
    """Impossible, whoever leaves."""

    sentence: str


def plan(
    standing: Standing, goal: Holding, capacity: Bytes, tenured_since: float = float("inf")
) -> Plan | NotYet | Never:
    """The moves that bring `goal` to the device: idle experts leave in order of (leaving, wanted, worth).

    A victim sleeps where that is enough, and leaves for disk only when host memory is short. Victims that turn out
    not to be needed stay, and so does who came after `tenured_since` and is waited for. Raises nothing; `Never`
    carries the sentence for a person.
    """

    short = _short(standing, goal, capacity)

    def may_leave(holding: Holding) -> bool:
        return not (holding.wanted and holding.since > tenured_since) and holding.name != goal.name

    def may_leave_now(holding: Holding) -> bool:
        return not holding.busy and not (holding.wanted and holding.since > tenured_since) and holding.name != goal.name

    if not (_all_busy(standing) and short.device > 0):
        draft = _make_room(standing, short, may_leave_now)
        if draft is not None:
            return Plan((*draft.moves(), Move(goal.name, goal.tier, Tier.DEVICE)))
    draft = _make_room(standing, short, may_leave)
    if draft is not None:
        return NotYet(tuple(move.expert for move in draft.moves()))
    draft = _make_room(standing, short, lambda holding: holding.name != goal.name)
    return Never(_why_never(goal, standing, capacity)) if draft is None else NotYet(())


def nobody_can_leave(standing: Standing, goal: Holding, capacity: Bytes) -> bool:
    """Whether `goal` has to wait because everybody on the device is busy: known at once, where `plan` says for whom.

    False where waiting may be in vain, which `plan` tells: beside pinned experts, or for who needs more than there is.
    """
    if not _all_busy(standing) or _short(standing, goal, capacity).device <= 0:
        return False
    need = bytes_in(goal.footprint, Tier.DEVICE)
    return need.device <= capacity.device and need.host <= capacity.host and not _anyone_is_pinned(standing)


def _anyone_is_pinned(standing: Standing) -> bool:
    return any(one.pin is not Tier.DISK for tier in (Tier.DEVICE, Tier.HOST) for one in standing.tiers[tier].values())


def _all_busy(standing: Standing) -> bool:
    """No idle expert holds anything of the device."""
    for holding in standing.tiers[Tier.DEVICE].values():
        if not holding.busy:
            return False
    return not standing.held[Tier.HOST].device


def _short(standing: Standing, goal: Holding, capacity: Bytes) -> Bytes:
    """What would be missing if the goal came and nobody left; below zero: what would be left over."""
    awake, asleep = standing.held[Tier.DEVICE], standing.held[Tier.HOST]
    now, then = goal.held, bytes_in(goal.footprint, Tier.DEVICE)
    return Bytes(
        awake.device + asleep.device + max(0, then.device - now.device) - capacity.device,
        awake.host + asleep.host + max(0, then.host - now.host) - capacity.host,
    )


def _make_room(standing: Standing, short: Bytes, may_leave: Callable[[Holding], bool]) -> _Draft | None:
    draft = _Draft(short)
    for way in _WAYS_DOWN:
        if draft.fits:
            break
        if not draft.gains_from(standing.held[way.source]):
            continue
        gain = draft.gain_from(way)
        for holding in way.in_order(standing.tiers[way.source].values()):
            if draft.fits:
                break
            if gain(holding.footprint) > 0 and may_leave(holding):
                draft.demote(holding, way.target(holding))
    if not draft.fits:
        return None
    draft.spare_the_unneeded()
    return draft


@dataclass(frozen=True, slots=True)
class _WayDown:
    """Which experts may be lowered from `source`, and how far."""

    source: Tier
    target: Callable[[Holding], Tier]
    device_gain: Callable[[Footprint], int]  # at most, by lowering somebody who is there

    def in_order(self, there: Collection[Holding]) -> Iterator[Holding]:
        """The first one to leave first: who drains already, then who is not wanted, then the least worth. One after the
        other, because most plans need one or two of 150."""
        line = [(not one.leaving, one.wanted, one.worth, one.name, one) for one in there]
        heapify(line)
        while line:
            yield heappop(line)[-1]


def _rests_in(holding: Holding) -> Tier:
    return Tier.HOST if holding.footprint.can_sleep else Tier.DISK


_NOTHING = Bytes()
_AWAKE, _ASLEEP, _IN_HOST = attrgetter("device_awake"), attrgetter("device_asleep"), attrgetter("host")

# cheapest first: who is on the device goes to sleep, or stops if it cannot sleep; then sleepers stop; then anybody does
_WAYS_DOWN = (
    _WayDown(Tier.DEVICE, _rests_in, _AWAKE),
    _WayDown(Tier.HOST, lambda _: Tier.DISK, _ASLEEP),
    _WayDown(Tier.DEVICE, lambda _: Tier.DISK, _AWAKE),
)


class _Draft:
    """A plan in the making: who stands where once it is carried out. Only who is lowered is written down."""

    def __init__(self, short: Bytes) -> None:
        self._device_short, self._host_short = short.device, short.host
        self._lowered: dict[str, tuple[Holding, Tier]] = {}

    @property
    def fits(self) -> bool:
        return self._device_short <= 0 and self._host_short <= 0

    def gains_from(self, held: Bytes) -> bool:
        """Whether any of what is short now is among these."""
        return (held.device if self._device_short > 0 else held.host) > 0

    def gain_from(self, way: _WayDown) -> Callable[[Footprint], int]:
        """How much of what is short now could be had at most from an expert."""
        return way.device_gain if self._device_short > 0 else _IN_HOST

    def demote(self, holding: Holding, tier: Tier) -> None:
        """Lower `holding` to `tier` if its pin allows it and the tier that is short gains by it."""
        now = self._tier(holding)
        if tier.depth > holding.pin.depth or tier.depth <= now.depth:
            return
        change = bytes_in(holding.footprint, tier) - bytes_in(holding.footprint, now)
        if (change.device if self._device_short > 0 else change.host) < 0:
            self._place(holding, tier, change)

    def spare_the_unneeded(self) -> None:
        """Undo every demotion that the plan can do without, the most valuable expert first."""
        if len(self._lowered) == 1:  # it did not fit before
            return
        lowered = [holding for holding, _ in self._lowered.values()]
        for holding in sorted(lowered, key=lambda h: (h.wanted, h.worth), reverse=True):
            chosen = self._tier(holding)
            for tier in (holding.tier, Tier.HOST):
                if tier.depth < chosen.depth and (tier is holding.tier or holding.footprint.can_sleep):
                    change = bytes_in(holding.footprint, tier) - bytes_in(holding.footprint, chosen)
                    self._place(holding, tier, change)
                    if self.fits:
                        break
                    self._place(holding, chosen, _NOTHING - change)

    def moves(self) -> tuple[Move, ...]:
        return tuple(Move(h.name, h.tier, tier) for h, tier in self._lowered.values() if h.tier is not tier)

    def _tier(self, holding: Holding) -> Tier:
        return self._lowered[holding.name][1] if holding.name in self._lowered else holding.tier

    def _place(self, holding: Holding, tier: Tier, change: Bytes) -> None:
        self._device_short += change.device
        self._host_short += change.host
        self._lowered[holding.name] = (holding, tier)


def _why_never(goal: Holding, standing: Standing, capacity: Bytes) -> str:
    need = bytes_in(goal.footprint, Tier.DEVICE)
    pinned = sum((bytes_in(h.footprint, h.pin) for h in standing if h.name != goal.name), Bytes())
    for tier, wants, has, kept in (
        ("device", need.device, capacity.device, pinned.device),
        ("host", need.host, capacity.host, pinned.host),
    ):
        if wants > has - kept:
            beside = f", of which pinned experts keep {mib(kept)}" if kept else ""
            return f"expert '{goal.name}' needs {mib(wants)} of {tier} memory; the limit is {mib(has)}{beside}"
    return f"expert '{goal.name}' does not fit beside the pinned experts"


def mib(size_bytes: int) -> str:
    """`134217728` as `128 MiB`."""
    return f"{size_bytes / 2**20:,.0f} MiB"


def pinned(name: str, footprint: Footprint, pin: Tier) -> Holding:
    """An expert that is as far down as its pin lets it."""
    return Holding(name, pin, footprint, pin=pin)


def left_out(experts: Iterable[Holding], capacity: Bytes) -> dict[str, str]:
    """Who of these could never come to the device, whoever leaves that may: name -> why."""
    experts = tuple(experts)
    standing = Standing.of(experts)
    plans = {one.name: plan(standing, one, capacity) for one in experts}
    return {name: found.sentence for name, found in plans.items() if isinstance(found, Never)}
