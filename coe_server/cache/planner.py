"""Pure: the moves that load one expert onto the device, on the best of its seats; or why it must wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from coe_server.cache.evictions import NO_VICTIM, Move, Room, Worth, worth_of
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier, bytes_in, mib
from coe_server.engines.engine import Seat


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
        room = Room(standing, goal, seat, capacity)
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
        room = Room(standing, goal, seats[0], capacity, spares_sleepers)
        way = _now(room, tenured_since) or _later(room, tenured_since)
        return way or Never(_why_never(goal, seats[0], standing, capacity))
    rooms = [Room(standing, goal, seat, capacity, spares_sleepers) for seat in seats]
    if free := [room for room in rooms if room.is_free]:
        return Plan((min(free, key=_crowd).arrival,))
    # what can be had at once spares the search for what may be had later
    way = _cheapest(rooms, _now, _may_leave_now(goal, tenured_since), tenured_since)
    way = way or _cheapest(rooms, _later, lambda holding: holding.name != goal.name, tenured_since)
    return way or Never(_why_never(goal, max(seats, key=lambda seat: min(map(capacity.on, seat))), standing, capacity))


_Rank = tuple[bool, Worth, int, int]


def _cheapest(
    rooms: Sequence[Room],
    find: Callable[[Room, float], Plan | NotYet | None],
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


def _now(room: Room, tenured_since: float) -> Plan | None:
    """The plan that loads `room.goal` on this seat now; None if too few experts are idle."""
    if room.device_is_short and room.all_busy:
        return None
    draft = room.made(_may_leave_now(room.goal, tenured_since))
    return None if draft is None else Plan((*draft.moves(), room.arrival))


def _later(room: Room, tenured_since: float) -> NotYet | None:
    """The experts whose end of work it waits for on this seat; None if waiting cannot help."""
    goal, seat = room.goal, room.seat

    def may_leave(holding: Holding) -> bool:
        return not (holding.wanted and holding.since > tenured_since) and holding.name != goal.name

    draft = room.made(may_leave)
    if draft is not None:
        return NotYet(tuple(move.expert for move in draft.moves()), seat)
    draft = room.made(lambda holding: holding.name != goal.name)
    return None if draft is None else NotYet((), seat)


def _crowd(room: Room) -> tuple[int, int]:
    """Sort key over free seats, the lowest is best: bytes of the experts that are there or would wake up there, then
    bytes that would be left over."""
    there = [room.standing.line(tier, (card,)) for card in room.seat for tier in (Tier.DEVICE, Tier.HOST)]
    return sum(one.footprint.device_awake for one in chain(*there)), -sum(room.short.values())


def _rank(room: Room, way: Plan | NotYet) -> _Rank:
    """Sort key over seats that need evictions: the lowest is best."""
    names = [move.expert for move in way.moves[:-1]] if isinstance(way, Plan) else way.leaving
    leaving = [holding for name in names if (holding := room.standing.holding(name)) is not None]
    dearest = max(map(worth_of, leaving), default=NO_VICTIM)
    return isinstance(way, NotYet), dearest, len(names), -sum(room.short.values())


def _has_tenured(standing: Standing, tenured_since: float) -> bool:
    return any(one.wanted and one.since > tenured_since for one in standing.line(Tier.DEVICE))


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
