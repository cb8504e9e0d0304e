"""Pure: which moves bring one expert to the device. No clock, no I/O; values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from coe_server.cache.tiers import Bytes, Tier, bytes_in
from coe_server.engines.engine import Footprint


@dataclass(frozen=True, slots=True)
class Holding:
    """One expert as the planner sees it."""

    name: str
    tier: Tier
    footprint: Footprint
    busy: bool = False  # leased or moving: it must stay where it is
    wanted: bool = False  # requests wait for it: others leave first
    leaving: bool = False  # it drains already: it leaves before anybody else is asked to
    tenured: bool = True  # it has been on the device long enough to be pressed out by mere waiting
    worth: float = 0.0  # seconds saved per byte by keeping it; the lowest leaves first
    pin: Tier = Tier.DISK  # never below this tier


@dataclass(frozen=True, slots=True)
class Move:
    """One expert from one tier to another."""

    expert: str
    source: Tier
    target: Tier


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
    holdings: Sequence[Holding], target: str, capacity: Bytes, protect_tenure: bool = False
) -> Plan | NotYet | Never:
    """The moves that bring `target` to the device: idle experts leave in order of (leaving, wanted, worth).

    A victim sleeps where that is enough, and leaves for disk only when host memory is short. Victims that turn out
    not to be needed stay. Raises nothing; `Never` carries the sentence for a person.
    """
    goal = next(h for h in holdings if h.name == target)
    others = [h for h in holdings if h.name != target and h.tier is not Tier.DISK]
    if protect_tenure:
        others = [replace(h, busy=True) if h.wanted and not h.tenured else h for h in others]
    draft = _make_room(goal, others, capacity)
    if draft is not None:
        return Plan((*draft.moves(), Move(target, goal.tier, Tier.DEVICE)))
    patient = [replace(h, busy=False) for h in others]
    draft = _make_room(goal, patient, capacity)
    if draft is None:
        return Never(_why_never(goal, holdings, capacity))
    return NotYet(tuple(move.expert for move in draft.moves()))


def _make_room(goal: Holding, others: Sequence[Holding], capacity: Bytes) -> _Draft | None:
    draft = _Draft(goal, others, capacity)
    victims = sorted((h for h in others if not h.busy), key=lambda h: (not h.leaving, h.wanted, h.worth, h.name))
    for lower in (_leave_device, _leave_sleep, _leave_for_disk):
        for holding, tier in lower(victims):
            if draft.fits:
                break
            draft.demote(holding, tier)
    if not draft.fits:
        return None
    draft.spare_the_unneeded()
    return draft


def _leave_device(victims: Iterable[Holding]) -> Iterator[tuple[Holding, Tier]]:
    """Cheapest first: what stands on the device goes to sleep, or stops if it cannot sleep."""
    for victim in victims:
        if victim.tier is Tier.DEVICE:
            yield victim, Tier.HOST if victim.footprint.can_sleep else Tier.DISK


def _leave_sleep(victims: Iterable[Holding]) -> Iterator[tuple[Holding, Tier]]:
    for victim in victims:
        if victim.tier is Tier.HOST:
            yield victim, Tier.DISK


def _leave_for_disk(victims: Iterable[Holding]) -> Iterator[tuple[Holding, Tier]]:
    for victim in victims:
        if victim.tier is Tier.DEVICE:
            yield victim, Tier.DISK


class _Draft:
    """A plan in the making: who stands where once it is carried out."""

    def __init__(self, goal: Holding, others: Sequence[Holding], capacity: Bytes) -> None:
        self._capacity = capacity
        self._before = {h.name: h for h in others}
        self._after = {h.name: h.tier for h in others}
        self._goal = bytes_in(goal.footprint, Tier.DEVICE).at_least(bytes_in(goal.footprint, goal.tier))
        self._used = sum((bytes_in(h.footprint, h.tier) for h in others), self._goal)

    @property
    def fits(self) -> bool:
        return self._used.fits(self._capacity)

    @property
    def _short_of_device(self) -> bool:
        return self._used.device > self._capacity.device

    def demote(self, holding: Holding, tier: Tier) -> None:
        """Lower `holding` to `tier` if its pin allows it and the tier that is short gains by it."""
        now = self._after[holding.name]
        if tier.depth > holding.pin.depth or tier.depth <= now.depth:
            return
        gain = bytes_in(holding.footprint, now) - bytes_in(holding.footprint, tier)
        if (gain.device if self._short_of_device else gain.host) > 0:
            self._place(holding, tier)

    def spare_the_unneeded(self) -> None:
        """Undo every demotion that the plan can do without, the most valuable expert first."""
        demoted = [h for h in self._before.values() if self._after[h.name] is not h.tier]
        for holding in sorted(demoted, key=lambda h: (h.wanted, h.worth), reverse=True):
            chosen = self._after[holding.name]
            for tier in (holding.tier, Tier.HOST):
                if tier.depth < chosen.depth and (tier is holding.tier or holding.footprint.can_sleep):
                    self._place(holding, tier)
                    if self.fits:
                        break
                    self._place(holding, chosen)

    def moves(self) -> tuple[Move, ...]:
        return tuple(
            Move(h.name, h.tier, self._after[h.name])
            for h in self._before.values()
            if self._after[h.name] is not h.tier
        )

    def _place(self, holding: Holding, tier: Tier) -> None:
        now = bytes_in(holding.footprint, self._after[holding.name])
        self._used = self._used - now + bytes_in(holding.footprint, tier)
        self._after[holding.name] = tier


def _why_never(goal: Holding, holdings: Sequence[Holding], capacity: Bytes) -> str:
    need = bytes_in(goal.footprint, Tier.DEVICE)
    pinned = sum((bytes_in(h.footprint, h.pin) for h in holdings if h is not goal), Bytes())
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
