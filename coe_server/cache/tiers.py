"""Pure: the tiers, the bytes that an expert holds in each, their ledger, and where every expert is (the standing)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import chain, zip_longest
from typing import NamedTuple

from coe_server.engines.engine import Footprint, Seat


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


class _Amounts(NamedTuple):
    cards: tuple[int, ...]
    host: int


class Bytes(_Amounts):
    """An amount on each card and in host memory (disk is not accounted).

    `Bytes(10, 5)` is 10 on the first card, `Bytes((10, 20), 5)` names each. Cards that are not named hold nothing, so
    `Bytes()` is zero on any machine and equal amounts compare as equal.
    """

    __slots__ = ()

    def __new__(cls, device: int | Sequence[int] = (), host: int = 0) -> Bytes:
        return _bytes((device,) if isinstance(device, int) else tuple(device), host)

    @property
    def device(self) -> int:
        """On all cards together."""
        return sum(self.cards)

    def on(self, card: int) -> int:
        """On that card."""
        return self.cards[card] if card < len(self.cards) else 0

    def __add__(self, other: Bytes) -> Bytes:  # type: ignore[override]  # amounts add up, they are not strung together
        return _bytes(tuple([a + b for a, b in _pairs(self.cards, other.cards)]), self.host + other.host)

    def __sub__(self, other: Bytes) -> Bytes:
        return _bytes(tuple([a - b for a, b in _pairs(self.cards, other.cards)]), self.host - other.host)

    def fits(self, capacity: Bytes) -> bool:
        if self.host > capacity.host:
            return False
        for a, b in _pairs(self.cards, capacity.cards):  # noqa: SIM110 -- half the time of `all`
            if a > b:
                return False
        return True

    def at_least(self, other: Bytes) -> Bytes:
        return _bytes(tuple([max(a, b) for a, b in _pairs(self.cards, other.cards)]), max(self.host, other.host))

    def without(self, card: int) -> Bytes:
        """The same with nothing on that card."""
        return _bytes(tuple(0 if index == card else size for index, size in enumerate(self.cards)), self.host)


def _bytes(cards: tuple[int, ...], host: int) -> Bytes:
    while cards and not cards[-1]:
        cards = cards[:-1]
    return Bytes._make((cards, host))


def _pairs(mine: tuple[int, ...], theirs: tuple[int, ...]) -> Iterable[tuple[int, int]]:
    """Card by card; one that only the other names counts as 0."""
    return zip(mine, theirs, strict=True) if len(mine) == len(theirs) else zip_longest(mine, theirs, fillvalue=0)


@lru_cache(maxsize=4096)  # every pass over the experts asks for the same few
def bytes_in(footprint: Footprint, tier: Tier, seat: Seat = (0,)) -> Bytes:
    """What an expert of this footprint holds while it stands in `tier`, its process on the cards of `seat`.

    The footprint's device bytes are those on each card, its host bytes those of the whole process. Host accounting is
    inclusive: process and image count while the process lives, awake or asleep, so that going to sleep never needs new
    host memory.
    """
    if tier is Tier.DISK:
        return _NOTHING
    on_each = footprint.device_awake if tier is Tier.DEVICE else footprint.device_asleep
    return Bytes([on_each if card in seat else 0 for card in range(max(seat) + 1)], footprint.host)


_NOTHING = Bytes()


class Ledger:
    """Bytes held by each expert. Reserve before a move, settle after it is seen to be done.

    `capacity` shrinks when a card is lost. What its experts still hold there stays until they have stopped; more than
    `capacity` is never reserved.
    """

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
        return self._may_hold(self.used - self.held(expert) + self.held(expert).at_least(target))

    def lose(self, card: int) -> None:
        """From now on that card has no room."""
        self.capacity = self.capacity.without(card)

    def _hold(self, expert: str, amount: Bytes) -> None:
        after = self.used - self.held(expert) + amount
        assert self._may_hold(after), f"ledger over capacity: {expert} -> {amount}, {after} of {self.capacity}"
        self.used = after
        if amount == Bytes():
            self._held.pop(expert, None)
        else:
            self._held[expert] = amount

    def _may_hold(self, after: Bytes) -> bool:
        """In all: within capacity, or, on a card that was lost, no more than now."""
        return after.fits(self.capacity) or after.fits(self.capacity.at_least(self.used))


class Holding(NamedTuple):
    """One expert as the planner sees it. Every change of an expert makes a new one, so it must be quick to make.

    A process stays on the cards of its `seat`; one that has none takes any of `seats`.
    """

    name: str
    tier: Tier
    footprint: Footprint
    busy: bool = False  # leased or moving: it must stay where it is
    wanted: bool = False  # requests wait for it: others leave first
    leaving: bool = False  # it drains already: it leaves before any other
    since: float = float("-inf")  # when it came to the device, in the clock of the caller
    worth: float = 0.0  # the lowest leaves first: when it was last used, or how often
    pin: Tier = Tier.DISK  # never below this tier
    seat: Seat = (0,)  # the cards of its process, or those that it starts on
    seats: tuple[Seat, ...] = ((0,),)  # where it may start

    @property
    def held(self) -> Bytes:
        return bytes_in(self.footprint, self.tier, self.seat)

    @property
    def may_come_to(self) -> tuple[Seat, ...]:
        """The seats on which it can come to the device without being stopped before."""
        return self.seats if self.tier is Tier.DISK else (self.seat,)

    @property
    def takes_part(self) -> bool:
        """False for an expert that is idle on disk: no plan can touch it."""
        return self.wanted or self.busy or self.tier is not Tier.DISK


@dataclass(frozen=True, slots=True)
class Standing:
    """Which experts stand in which tier, and what all of them hold.

    A change makes a new one and costs what has changed.
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
        """What is known of an expert; None if it takes no part."""
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
        """The same with these instead of what was known of them."""
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
    """A standing in the making; of the old one's tiers only those are copied in which something changes."""

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
            self._own(known.tier)[name] = holding  # it holds what it held
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
