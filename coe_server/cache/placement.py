"""Pure: predicts, before a start, which experts fit on the cards together and which sleep beside them.

Greedy in the order given. The bytes that a sleeper keeps on its cards are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coe_server.cache.seats import Card, candidate_seats
from coe_server.cache.tiers import Tier, mib
from coe_server.engines.engine import Seat


@dataclass(frozen=True, slots=True)
class Demand:
    """One expert's memory: bytes on each of its `width` cards, and in host memory while its process runs."""

    name: str
    awake: int
    asleep: int
    host: int
    can_sleep: bool
    width: int = 1
    pin: Tier = Tier.DISK
    preload: Tier = Tier.DISK
    allowed: frozenset[int] | None = None  # the cards it may lie on; None: any

    def seats(self, cards: Sequence[Card]) -> tuple[Seat, ...]:
        """Where it may lie, in order of preference."""
        return candidate_seats(cards, self.width, self.allowed)


@dataclass(slots=True)
class Placement:
    """The seat of each expert once as many as possible are loaded. An expert in none of these starts from disk."""

    room: Mapping[int, int]  # card -> bytes that experts may use
    host_room: int
    loaded: dict[str, Seat] = field(default_factory=dict)
    asleep: dict[str, Seat] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # name -> why it can never be loaded


def place(
    demands: Sequence[Demand], cards: Sequence[Card], host_room: int, room: Sequence[int] | None = None
) -> Placement:
    """Pinned experts first, then those to preload, then the others in order.

    `room` is what experts may take of each card. Default: all that it has.
    """
    free = [card.total_bytes for card in cards] if room is None else room
    found = Placement({card.index: size for card, size in zip(cards, free, strict=True)}, host_room)
    by_name = {one.name: one for one in demands}
    in_order = sorted(demands, key=lambda one: min(one.pin, one.preload, key=lambda tier: tier.depth).depth)
    for one in in_order:
        if why := _why_never(one, in_order, cards, found):
            found.left_out[one.name] = why
    possible = [one for one in in_order if one.name not in found.left_out]
    _put_to_sleep(possible, cards, found)
    for one in possible:
        _load(one, by_name, one.seats(cards), found)
    return found


def _put_to_sleep(demands: Iterable[Demand], cards: Sequence[Card], found: Placement) -> None:
    """Let as many experts sleep as fit into host memory, spread over the cards, largest first."""
    host_left, sleepers = found.host_room, []
    for one in demands:
        if one.host <= host_left and one.can_sleep:
            host_left -= one.host
            sleepers.append(one)
    load, kept = dict.fromkeys(found.room, 0.0), dict.fromkeys(found.room, 0)
    for one in sorted(sleepers, key=lambda one: -one.awake * one.width):
        seats = [
            seat
            for seat in one.seats(cards)
            if all(one.awake <= found.room[card] and kept[card] + one.asleep <= found.room[card] for card in seat)
        ]
        if not seats:
            continue
        best = min(seats, key=lambda seat: sum(load[card] for card in seat))
        for card in best:
            load[card] += one.awake / found.room[card]
            kept[card] += one.asleep
        found.asleep[one.name] = best


def _load(one: Demand, known: Mapping[str, Demand], seats: Sequence[Seat], found: Placement) -> None:
    """Load it on the seat where it sleeps, else on another with enough memory, else leave it as it is.

    For the first expert to be loaded sleepers are stopped until it fits, pinned ones last.
    """
    own = found.asleep.pop(one.name, None)
    dispensable = sorted(found.asleep, key=lambda name: known[name].pin is Tier.DISK)
    while (seat := _free_seat(one, own, known, seats, found)) is None:
        if found.loaded or not dispensable:
            break
        del found.asleep[dispensable.pop()]
    if seat is not None:
        found.loaded[one.name] = seat
    elif own is not None:
        found.asleep[one.name] = own


def _free_seat(
    one: Demand, own: Seat | None, known: Mapping[str, Demand], seats: Sequence[Seat], found: Placement
) -> Seat | None:
    if one.host > found.host_room - sum(known[name].host for name in (*found.loaded, *found.asleep)):
        return None
    free = {card: _free(card, known, found) for card in found.room}
    fitting = [seat for seat in seats if all(one.awake <= free[card] for card in seat)]
    return max(fitting, key=lambda seat: (seat == own, min(free[card] for card in seat)), default=None)


def kept_by_sleepers(found: Placement, demands: Iterable[Demand]) -> dict[int, int]:
    """Card -> bytes used by sleeping experts."""
    return {card: sum(one.asleep for one in demands if card in found.asleep.get(one.name, ())) for card in found.room}


def used_by_loaded(found: Placement, demands: Iterable[Demand]) -> dict[int, int]:
    """Card -> bytes used by loaded experts."""
    return {card: sum(one.awake for one in demands if card in found.loaded.get(one.name, ())) for card in found.room}


def _free(card: int, known: Mapping[str, Demand], found: Placement) -> int:
    awake = sum(known[name].awake for name, seat in found.loaded.items() if card in seat)
    asleep = sum(known[name].asleep for name, seat in found.asleep.items() if card in seat)
    return found.room[card] - awake - asleep


def _why_never(one: Demand, demands: Sequence[Demand], cards: Sequence[Card], found: Placement) -> str:
    """Why it can never be loaded, even after every permitted eviction; empty if it can."""
    seats = one.seats(cards)
    if not seats and one.allowed is not None:
        return f"expert '{one.name}' finds no {one.width} equal cards among {sorted(one.allowed)}"
    if not seats:
        return f"expert '{one.name}' needs {one.width} equal cards; there are {len(cards)}"
    pinned = list(_pinned_before(one, demands, found))
    kept_host = sum(other.host for other in pinned)
    if one.host > found.host_room - kept_host:
        return _told(one.name, one.host, "host", found.host_room, kept_host)
    kept = _least_kept(pinned, found)
    if one.awake > max(min(found.room[card] - kept[card] for card in seat) for seat in seats):
        where = "device memory" if one.width == 1 else f"device memory on each of {one.width} cards"
        return _told(one.name, one.awake, where.removesuffix(" memory"), max(found.room.values()), min(kept.values()))
    return ""


def _pinned_before(one: Demand, demands: Sequence[Demand], found: Placement) -> Iterator[Demand]:
    for other in demands:
        if other.name != one.name and other.pin is not Tier.DISK and other.name not in found.left_out:
            yield other


def _least_kept(pinned: Iterable[Demand], found: Placement) -> dict[int, int]:
    """Card -> bytes of pinned experts, each placed on the cards with the most free memory."""
    kept = dict.fromkeys(found.room, 0)
    for one in pinned:
        size = one.awake if one.pin is Tier.DEVICE else one.asleep
        for card in sorted(kept, key=lambda card: kept[card] - found.room[card])[: one.width]:
            kept[card] += size
    return kept


def _told(name: str, need: int, tier: str, limit: int, kept: int) -> str:
    beside = f", of which pinned experts keep {mib(kept)}" if kept else ""
    place = tier if "cards" in tier else f"{tier} memory"
    return f"expert '{name}' needs {mib(need)} of {place}; the limit is {mib(limit)}{beside}"
