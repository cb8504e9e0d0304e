"""Pure: the tiers, the bytes that an expert holds in each, the ledger, and the standing (every expert's tier)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import chain, starmap, zip_longest
from operator import add, gt, sub
from typing import NamedTuple

from coe_server.engines.engine import Footprint, Seat


class Tier(StrEnum):
    """Where an expert's weights can be, fastest first; `depth` is 0 for the fastest."""

    depth: int

    DEVICE = "device", 0
    HOST = "host", 1
    DISK = "disk", 2

    def __new__(cls, word: str, depth: int = 0) -> Tier:  # type checkers use it for the look-up `Tier("host")`
        tier = str.__new__(cls, word)
        tier._value_, tier.depth = word, depth
        return tier


class _Amounts(NamedTuple):
    cards: tuple[int, ...]
    host: int


class Bytes(_Amounts):
    """Bytes on each card and in host memory (disk is not accounted).

    `Bytes(10, 5)` is 10 on the first card and 5 in host memory; `Bytes((10, 20), 5)` lists the cards. Missing cards
    count as 0, so `Bytes()` is zero on any machine and equal amounts compare as equal.
    """

    __slots__ = ()

    def __new__(cls, device: int | Sequence[int] = (), host: int = 0) -> Bytes:
        return _bytes((device,) if isinstance(device, int) else tuple(device), host)

    @property
    def device(self) -> int:
        """Sum over all cards."""
        return sum(self.cards)

    def on(self, card: int) -> int:
        """Bytes on that card."""
        return self.cards[card] if card < len(self.cards) else 0

    def __add__(self, other: Bytes) -> Bytes:  # type: ignore[override]  # adds amounts instead of joining tuples
        return _bytes(tuple(starmap(add, zip_longest(self.cards, other.cards, fillvalue=0))), self.host + other.host)

    def __sub__(self, other: Bytes) -> Bytes:
        return _bytes(tuple(starmap(sub, zip_longest(self.cards, other.cards, fillvalue=0))), self.host - other.host)

    def fits(self, capacity: Bytes) -> bool:
        over = starmap(gt, zip_longest(self.cards, capacity.cards, fillvalue=0))
        return self.host <= capacity.host and not any(over)

    def at_least(self, other: Bytes) -> Bytes:
        return _bytes(
            tuple(starmap(max, zip_longest(self.cards, other.cards, fillvalue=0))), max(self.host, other.host)
        )

    def without(self, card: int) -> Bytes:
        """The same with 0 on that card."""
        return _bytes(tuple(0 if index == card else size for index, size in enumerate(self.cards)), self.host)


def _bytes(cards: tuple[int, ...], host: int) -> Bytes:
    while cards and not cards[-1]:
        cards = cards[:-1]
    return Bytes._make((cards, host))


@lru_cache(maxsize=4096)  # every pass asks for the same few
def bytes_in(footprint: Footprint, tier: Tier, seat: Seat = (0,)) -> Bytes:
    """The bytes of an expert with this footprint in `tier`, with its process on the cards of `seat`.

    Device bytes of a footprint are per card, host bytes per process. Host accounting is inclusive: process and image
    count while the process runs, awake or asleep, so a sleep never needs new host memory.
    """
    if tier is Tier.DISK:
        return _NOTHING
    on_each = footprint.device_awake if tier is Tier.DEVICE else footprint.device_asleep
    return Bytes([on_each if card in seat else 0 for card in range(max(seat) + 1)], footprint.host)


_NOTHING = Bytes()


def idle_tier(footprint: Footprint) -> Tier:
    """The tier to which an expert moves when it is evicted and host memory is sufficient."""
    return Tier.HOST if footprint.can_sleep else Tier.DISK


class Ledger:
    """Bytes held by each expert. Reserve before a move; settle after its effect was measured.

    More than `capacity` is never reserved. `capacity` shrinks when a card is lost; bytes held there stay in the
    ledger until their experts have stopped.
    """

    def __init__(self, capacity: Bytes) -> None:
        self.capacity = capacity
        self.used = Bytes()
        self._held: dict[str, Bytes] = {}

    @property
    def free(self) -> Bytes:
        return self.capacity - self.used

    def held(self, expert: str) -> Bytes:
        return self._held.get(expert, _NOTHING)

    def reserve(self, expert: str, target: Bytes) -> bool:
        """Hold the larger of present bytes and `target` in each tier, for the duration of a move. False: no room."""
        held = self.held(expert)
        amount = held.at_least(target)
        after = self.used - held + amount
        if not self._may_hold(after):
            return False
        self.used, self._held[expert] = after, amount
        return True

    def settle(self, expert: str, exact: Bytes) -> None:
        """Hold exactly `exact`, after memory was seen to be used or freed."""
        after = self.used - self.held(expert) + exact
        assert self._may_hold(after), f"ledger over capacity: {expert} -> {exact}, {after} of {self.capacity}"
        self.used, self._held[expert] = after, exact
        if exact == _NOTHING:
            del self._held[expert]

    def lose(self, card: int) -> None:
        """Set the capacity of that card to 0."""
        self.capacity = self.capacity.without(card)

    def _may_hold(self, after: Bytes) -> bool:
        """True if the total is within capacity; on a lost card it must not grow."""
        return after.fits(self.capacity) or after.fits(self.capacity.at_least(self.used))


class Holding(NamedTuple):
    """The planner's view of one expert. Every change of an expert creates a new one, so creation must be fast.

    A process stays on the cards of its `seat`; an expert without a process may use any of `seats`.
    """

    name: str
    tier: Tier
    footprint: Footprint
    busy: bool = False  # leased or moving: must not be moved
    wanted: bool = False  # has waiting requests: others are evicted first
    leaving: bool = False  # already draining: evicted before any other
    since: float = float("-inf")  # when it came to the device, in the caller's clock
    worth: float = 0.0  # the lowest is evicted first: time of last use, or number of uses
    pin: Tier = Tier.DISK  # never below this tier
    seat: Seat = (0,)  # the cards of its process, or of its start
    seats: tuple[Seat, ...] = ((0,),)  # where it may start

    @property
    def held(self) -> Bytes:
        return bytes_in(self.footprint, self.tier, self.seat)

    @property
    def may_come_to(self) -> tuple[Seat, ...]:
        """The seats on which it can be loaded without a stop before."""
        return self.seats if self.tier is Tier.DISK else (self.seat,)

    @property
    def takes_part(self) -> bool:
        """False for an idle expert on disk: no plan involves it."""
        return self.wanted or self.busy or self.tier is not Tier.DISK


@dataclass(frozen=True, slots=True)
class Standing:
    """The experts in each tier, and the bytes that they hold together.

    Immutable; an update copies only what has changed.
    """

    tiers: Mapping[Tier, Mapping[str, Holding]]
    held: Mapping[Tier, Bytes]
    _lines: dict[tuple[Tier, int], list[Holding]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, holdings: Iterable[Holding]) -> Standing:
        return cls({tier: {} for tier in Tier}, {tier: Bytes() for tier in Tier}).updated(holdings)

    @property
    def used(self) -> Bytes:
        return self.held[Tier.DEVICE] + self.held[Tier.HOST]  # an expert on disk holds nothing

    def holding(self, name: str) -> Holding | None:
        """The holding of an expert; None if it takes no part."""
        return _look_up(self.tiers, name)

    def line(self, tier: Tier, seat: Seat | None = None) -> Sequence[Holding]:
        """The experts in `tier`, of those on these cards, in the order in which they leave.

        Those that drain leave first, then those not wanted, then those of the least worth. A line is sorted once and
        kept until an expert in it changes.
        """
        if seat is None:
            return self._line(tier, _EVERY_CARD)
        if len(seat) == 1:
            return self._line(tier, seat[0])
        on_any = {holding.name: holding for card in seat for holding in self._line(tier, card)}
        return sorted(on_any.values(), key=_order)

    def _line(self, tier: Tier, card: int) -> list[Holding]:
        found = self._lines.get((tier, card))
        if found is None:
            there = self.tiers[tier].values()
            found = sorted((one for one in there if card == _EVERY_CARD or card in one.seat), key=_order)
            self._lines[tier, card] = found
        return found

    def __iter__(self) -> Iterator[Holding]:
        return chain.from_iterable(tier.values() for tier in self.tiers.values())

    def updated(self, changed: Iterable[Holding]) -> Standing:
        """A new standing with these holdings replaced."""
        draft = _Changes(self)
        for holding in changed:
            draft.put(holding)
        return Standing(draft.tiers, draft.held, draft.lines)


_EVERY_CARD = -1


def _order(holding: Holding) -> tuple[bool, bool, float, str]:
    return not holding.leaving, holding.wanted, holding.worth, holding.name


def _look_up(tiers: Mapping[Tier, Mapping[str, Holding]], name: str) -> Holding | None:
    for tier in tiers.values():
        if name in tier:
            return tier[name]
    return None


def _hold_the_same(one: Holding, other: Holding) -> bool:
    return one.tier is other.tier and one.footprint is other.footprint and one.seat == other.seat


class _Changes:
    """A standing under construction. Only tiers that change are copied from the old one."""

    def __init__(self, before: Standing) -> None:
        self.tiers = dict(before.tiers)
        self.held = dict(before.held)
        self.lines = dict(before._lines)
        self._before = before

    def put(self, holding: Holding) -> None:
        name = holding.name
        known = _look_up(self.tiers, name)
        if known == holding:
            return
        stays = holding.takes_part
        if known is not None:
            self._forget_lines(known)
        if stays:
            self._forget_lines(holding)
        if known is not None and stays and _hold_the_same(known, holding):
            self._own(known.tier)[name] = holding  # its bytes are unchanged
            return
        if known is not None:
            del self._own(known.tier)[name]
            self.held[known.tier] -= known.held
        if stays:
            self._own(holding.tier)[name] = holding
            self.held[holding.tier] += holding.held

    def _forget_lines(self, changed: Holding) -> None:
        for card in (_EVERY_CARD, *changed.seat):
            self.lines.pop((changed.tier, card), None)

    def _own(self, tier: Tier) -> dict[str, Holding]:
        there = self.tiers[tier]
        if there is self._before.tiers[tier]:
            there = self.tiers[tier] = dict(there)
        assert isinstance(there, dict)
        return there


def mib(size_bytes: int) -> str:
    """`134217728` as `128 MiB`."""
    return f"{size_bytes / 2**20:,.0f} MiB"
