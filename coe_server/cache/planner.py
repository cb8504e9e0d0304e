"""Pure: the moves that load one expert onto the device, and which experts can never fit beside the pinned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from coe_server.cache.tiers import Bytes, Holding, Standing, Tier, bytes_in
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


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves that, in this order, bring the expert to the device."""

    moves: tuple[Move, ...]

    @property
    def victims(self) -> tuple[str, ...]:
        """The experts that are evicted from the device."""
        return tuple(move.expert for move in self.moves if move.source is Tier.DEVICE)


@dataclass(frozen=True, slots=True)
class NotYet:
    """Possible on `seat` once every busy expert among `leaving` is idle, provided that the others stay idle."""

    leaving: tuple[str, ...]
    seat: Seat = (0,)


@dataclass(frozen=True, slots=True)
class Never:
    """Impossible even after every permitted eviction."""

    sentence: str


def plan(
    standing: Standing, goal: Holding, capacity: Bytes, tenured_since: float = float("inf")
) -> Plan | NotYet | Never:
    """The moves that bring `goal` to the device: idle experts leave in order of (leaving, wanted, worth).

    A victim sleeps where that is enough, and leaves for disk only when host memory is short. Victims that turn out
    not to be needed stay, and so does one that came after `tenured_since` and is waited for. Of several seats the best
    is taken: a plan before a wait; of plans without victims the one on the least crowded seat, else the victims of
    least worth, then the fewest moves, then the tightest fit. Raises nothing; `Never` carries a sentence for people.
    """
    return _best(standing, goal, goal.may_come_to, capacity, tenured_since)


def plan_sparing_sleepers(
    standing: Standing, goal: Holding, capacity: Bytes, tenured_since: float = float("inf")
) -> Plan | NotYet | Never:
    """The same without stopping a sleeper for the little that it keeps on a card: its next start costs far more than
    waiting for an expert that is busy. Where only host memory is short, sleepers stop. `Never`: ask `plan`.
    """
    return _best(standing, goal, goal.may_come_to, capacity, tenured_since, spares_sleepers=True)


def plan_anew(standing: Standing, goal: Holding, capacity: Bytes) -> Plan | NotYet | Never:
    """The plan that stops the sleeping expert `goal` and starts it on another of its seats."""
    return _best(standing, goal, [seat for seat in goal.seats if seat != goal.seat], capacity, float("inf"))


def no_expert_can_leave(standing: Standing, goal: Holding, capacity: Bytes) -> bool:
    """True if `goal` must wait because every expert on each of its seats is busy. A fast check before `plan`.

    False if waiting might never help, which only `plan` can tell: with pinned experts, or if `goal` needs more than
    the capacity.
    """
    need = goal.footprint.device_awake
    if goal.footprint.host > capacity.host or not goal.may_come_to:
        return False
    for seat in goal.may_come_to:
        room = _Room(standing, goal, seat, capacity)
        fits = all(need <= capacity.on(card) for card in seat)
        if not (fits and room.device_is_short and room.all_busy):
            return False
    return not _anyone_is_pinned(standing)


def _anyone_is_pinned(standing: Standing) -> bool:
    return any(one.pin is not Tier.DISK for tier in (Tier.DEVICE, Tier.HOST) for one in standing.tiers[tier].values())


def _best(
    standing: Standing,
    goal: Holding,
    seats: Sequence[Seat],
    capacity: Bytes,
    tenured_since: float,
    spares_sleepers: bool = False,
) -> Plan | NotYet | Never:
    """The best outcome over these seats."""
    if not seats:
        return Never(f"expert '{goal.name}' has no cards to start on")
    if len(seats) == 1:
        room = _Room(standing, goal, seats[0], capacity, spares_sleepers)
        way = _now(room, tenured_since) or _later(room, tenured_since)
        return way or Never(_why_never(goal, seats[0], standing, capacity))
    rooms = [_Room(standing, goal, seat, capacity, spares_sleepers) for seat in seats]
    if free := [room for room in rooms if room.is_free]:
        return min(free, key=_crowd).plan(())
    # what can be had at once spares the search for what may be had later
    way = _cheapest(rooms, _now, _may_leave_now(goal, tenured_since), tenured_since)
    way = way or _cheapest(rooms, _later, lambda holding: holding.name != goal.name, tenured_since)
    return way or Never(_why_never(goal, max(seats, key=lambda seat: min(map(capacity.on, seat))), standing, capacity))


_Worth = tuple[bool, bool, float]
_Rank = tuple[bool, _Worth, int, int]


def _cheapest(
    rooms: Sequence[_Room],
    find: Callable[[_Room, float], Plan | NotYet | None],
    may_leave: Callable[[Holding], bool],
    tenured_since: float,
) -> Plan | NotYet | None:
    """The way of the lowest rank; of equal ones that on the earlier seat. A seat on which even the first victim is
    worth more than those found elsewhere is not searched. `may_leave` is true of every expert that `find` considers.
    """
    if not rooms[0].host_can_be_had(may_leave):
        return None
    least = [(worth, at) for at, room in enumerate(rooms) if (worth := room.least_worth(may_leave)) is not None]
    found: tuple[tuple[_Rank, int], Plan | NotYet] | None = None
    for worth, at in sorted(least):
        if found is not None and worth > found[0][0][1] and not _has_tenured(rooms[0].standing, tenured_since):
            break
        way = find(rooms[at], tenured_since)
        if way is not None and (found is None or (_rank(rooms[at], way), at) < found[0]):
            found = (_rank(rooms[at], way), at), way
    return None if found is None else found[1]


def _may_leave_now(goal: Holding, tenured_since: float) -> Callable[[Holding], bool]:
    def may_leave_now(holding: Holding) -> bool:
        return not holding.busy and not (holding.wanted and holding.since > tenured_since) and holding.name != goal.name

    return may_leave_now


def _now(room: _Room, tenured_since: float) -> Plan | None:
    """The plan that loads `room.goal` on this seat now; None if too few experts are idle."""
    if room.device_is_short and room.all_busy:
        return None
    draft = room.made(_may_leave_now(room.goal, tenured_since))
    return None if draft is None else room.plan(draft.moves())


def _later(room: _Room, tenured_since: float) -> NotYet | None:
    """The experts whose end of work it waits for on this seat; None if waiting cannot help."""
    goal, seat = room.goal, room.seat

    def may_leave(holding: Holding) -> bool:
        return not (holding.wanted and holding.since > tenured_since) and holding.name != goal.name

    draft = room.made(may_leave)
    if draft is not None:
        return NotYet(tuple(move.expert for move in draft.moves()), seat)
    draft = room.made(lambda holding: holding.name != goal.name)
    return None if draft is None else NotYet((), seat)


class _Room:
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

    def plan(self, first: tuple[Move, ...]) -> Plan:
        """These moves, then the expert comes to this seat."""
        source = self.goal.tier if self.seat == self.goal.seat else Tier.DISK
        return Plan((*first, Move(self.goal.name, source, Tier.DEVICE, self.seat)))

    @property
    def all_busy(self) -> bool:
        """True if no idle expert holds memory on this seat."""
        seat, asleep = self.seat, self.standing.held[Tier.HOST]
        return not any(map(asleep.on, seat)) and all(one.busy for one in self.standing.line(Tier.DEVICE, seat))

    def made(self, may_leave: Callable[[Holding], bool]) -> _Draft | None:
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

    def _draft(self, may_leave: Callable[[Holding], bool], asks: Callable[[int], bool]) -> _Draft:
        draft = _Draft(self.short, self._host_short)
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

    def _concerned(self, tier: Tier, draft: _Draft) -> Iterator[Sequence[Holding]]:
        """Those that could leave room: those on the seat's cards; then, if only host memory is short, all others."""
        if len(self.capacity.cards) < _SEVERAL:
            yield self.standing.line(tier)
            return
        yield self.standing.line(tier, self.seat)
        if draft.lacks_only_host:
            yield self.standing.line(tier)

    def least_worth(self, may_leave: Callable[[Holding], bool]) -> _Worth | None:
        """The dearest victim on this seat is worth at least this; None where not enough can be freed on a card."""
        least = _NO_VICTIM
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
            least = max(least, min(map(_worth, first)))
        return least

    def host_can_be_had(self, may_leave: Callable[[Holding], bool]) -> bool:
        """False where not enough host memory could be freed, whichever experts leave: the same on every seat."""
        if self._host_short <= 0:
            return True
        there = chain(self.standing.line(Tier.DEVICE), self.standing.line(Tier.HOST))
        could = sum(one.footprint.host for one in there if one.pin is Tier.DISK and may_leave(one))
        return could >= self._host_short


def _crowd(room: _Room) -> tuple[int, int]:
    """Sort key over free seats, the lowest is best: bytes of the experts that are there or would wake up there, then
    bytes that would be left over."""
    there = [room.standing.line(tier, (card,)) for card in room.seat for tier in (Tier.DEVICE, Tier.HOST)]
    return sum(one.footprint.device_awake for one in chain(*there)), -sum(room.short.values())


def _rank(room: _Room, way: Plan | NotYet) -> _Rank:
    """Sort key over seats that need evictions: the lowest is best."""
    names = [move.expert for move in way.moves[:-1]] if isinstance(way, Plan) else way.leaving
    leaving = [holding for name in names if (holding := room.standing.holding(name)) is not None]
    dearest = max(map(_worth, leaving), default=_NO_VICTIM)
    return isinstance(way, NotYet), dearest, len(names), -sum(room.short.values())


def _has_tenured(standing: Standing, tenured_since: float) -> bool:
    return any(one.wanted and one.since > tenured_since for one in standing.line(Tier.DEVICE))


def _worth(holding: Holding) -> _Worth:
    return not holding.leaving, holding.wanted, holding.worth


def _gains(gain: int) -> bool:
    return gain > 0


_SEVERAL = 2
_NO_VICTIM = (False, False, float("-inf"))


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


def _rests_in(holding: Holding) -> Tier:
    return Tier.HOST if holding.footprint.can_sleep else Tier.DISK


_AWAKE, _ASLEEP, _IN_HOST = attrgetter("device_awake"), attrgetter("device_asleep"), attrgetter("host")

# cheapest first: loaded experts sleep (or stop if they cannot), then sleepers stop, then any loaded expert stops
_WAYS_DOWN = (
    _WayDown(Tier.DEVICE, _rests_in, _AWAKE),
    _WayDown(Tier.HOST, lambda _: Tier.DISK, _ASLEEP),
    _WayDown(Tier.DEVICE, lambda _: Tier.DISK, _AWAKE),
)


class _Draft:
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


def _why_never(goal: Holding, seat: Seat, standing: Standing, capacity: Bytes) -> str:
    pinned = sum((bytes_in(h.footprint, h.pin, h.seat) for h in standing if h.name != goal.name), Bytes())
    fullest = min(seat, key=lambda card: capacity.on(card) - pinned.on(card))
    where = f"device memory on each of {len(seat)} cards" if len(seat) > 1 else "device memory"
    for memory, wants, has, kept in (
        (where, goal.footprint.device_awake, capacity.on(fullest), pinned.on(fullest)),
        ("host memory", goal.footprint.host, capacity.host, pinned.host),
    ):
        if wants > has - kept:
            beside = f", of which pinned experts keep {mib(kept)}" if kept else ""
            return f"expert '{goal.name}' needs {mib(wants)} of {memory}; the limit is {mib(has)}{beside}"
    return f"expert '{goal.name}' does not fit beside the pinned experts"


def mib(size_bytes: int) -> str:
    """`134217728` as `128 MiB`."""
    return f"{size_bytes / 2**20:,.0f} MiB"


def pinned(
    name: str, footprint: Footprint, pin: Tier, seats: tuple[Seat, ...] = ((0,),), seat: Seat | None = None
) -> Holding:
    """An expert in the lowest tier that its pin allows, on `seat`, or on the seat that `seated` chooses."""
    return Holding(name, pin, footprint, pin=pin, seat=seat or seats[0], seats=(seat,) if seat else seats)


def seated(experts: Iterable[Holding], capacity: Bytes) -> tuple[Holding, ...]:
    """The same experts with one seat for each pinned one: widest and largest first, each at its tightest fit.

    A pinned expert that fits on no seat stays on its first.
    """
    experts = tuple(experts)
    free, chosen = capacity, {one.name: one for one in experts}
    fixed = [one for one in experts if one.pin is not Tier.DISK and len(one.seats) == 1]
    for one in fixed:
        free -= one.held
    loose = [one for one in experts if one.pin is not Tier.DISK and len(one.seats) > 1]
    for one in sorted(loose, key=lambda one: (-len(one.seat), -one.footprint.device_awake, one.name)):
        fits = [seat for seat in one.seats if bytes_in(one.footprint, one.tier, seat).fits(free)]
        seat = min(fits, key=lambda seat: sum(map(free.on, seat)), default=one.seat)
        chosen[one.name] = one._replace(seat=seat, seats=(seat,))
        free -= chosen[one.name].held
    return tuple(chosen.values())


def left_out(experts: Iterable[Holding], capacity: Bytes) -> dict[str, str]:
    """Experts that can never be loaded, even after every permitted eviction: name -> why."""
    experts = seated(experts, capacity)
    standing = Standing.of(experts)
    plans = {one.name: plan(standing, one, capacity) for one in experts}
    return {name: found.sentence for name, found in plans.items() if isinstance(found, Never)}
