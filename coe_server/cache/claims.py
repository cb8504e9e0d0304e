"""Pure: the seats and host memory that overdue experts wait for, which nothing behind them takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from coe_server.cache.tiers import Bytes, Holding, Standing, Tier
from coe_server.engines.engine import Seat


class Claim(NamedTuple):
    """The seat that an overdue expert waits for, and the host memory that it needs there.

    It is kept from pass to pass and holds against every turn of a later deadline.
    """

    expert: str
    arrived: float  # seconds; of its oldest request
    seat: Seat
    host_bytes: int


class Taken(NamedTuple):
    """What the claims ahead of a turn leave to nothing behind them."""

    cards: frozenset[int]
    host_bytes: int

    @property
    def is_nothing(self) -> bool:
        return not self.cards and not self.host_bytes

    def leaves(self, seats: tuple[Seat, ...]) -> tuple[Seat, ...]:
        """Those of the seats on which there is no claim."""
        return tuple([seat for seat in seats if self.cards.isdisjoint(seat)]) if self.cards else seats

    def left_of(self, capacity: Bytes) -> Bytes:
        """The capacity without the host memory that is claimed."""
        return capacity - Bytes(host=self.host_bytes) if self.host_bytes else capacity


_NOTHING = Taken(frozenset(), 0)


class Claims:
    """The claims of one pass. Those of the last pass whose expert is still overdue, or waits to be asked, are kept."""

    def __init__(
        self, kept: Iterable[Claim], standing: Standing, arrived: Mapping[str, float], overdue: Collection[str]
    ) -> None:
        """`arrived`: when the oldest request came for each expert that may have a turn in this pass."""
        self._claims: dict[str, Claim] = {}
        self._settled: set[str] = set()  # in this pass: they stand before every turn that follows
        for claim in kept:
            holding = standing.holding(claim.expert)
            waits = holding is not None and holding.wanted and not holding.busy and holding.tier is not Tier.DEVICE
            if waits and (claim.expert in overdue or claim.expert not in arrived):
                self._claims[claim.expert] = claim._replace(arrived=arrived.get(claim.expert, claim.arrived))

    def all(self) -> tuple[Claim, ...]:
        return tuple(self._claims.values())

    def seat_of(self, expert: str) -> Seat | None:
        claim = self._claims.get(expert)
        return None if claim is None else claim.seat

    def put(self, goal: Holding, arrived: float, seat: Seat) -> None:
        """From now on the seat, and the host memory that the expert lacks, are claimed."""
        lacks = goal.footprint.host - goal.held.host
        self._claims[goal.name] = Claim(goal.name, arrived, seat, max(0, lacks))
        self._settled.add(goal.name)

    def drop(self, expert: str) -> None:
        self._claims.pop(expert, None)

    def ahead_of(self, expert: str, arrived: float, standing: Standing, starts_on: Seat | None) -> Taken:
        """What is claimed with an earlier deadline than that of a request which came at `arrived`.

        Where an engine starts on the cards of `starts_on`, a claim on them that needs a start itself cannot be met
        before that is over: until then others may use the room.
        """
        if not self._claims:
            return _NOTHING
        cards: set[int] = set()
        host_bytes = 0
        for claim in self._claims.values():
            earlier = claim.expert in self._settled or claim.arrived < arrived
            if claim.expert == expert or not earlier:
                continue
            if starts_on is not None and claim.expert in standing.tiers[Tier.DISK] and _touch(claim.seat, starts_on):
                continue
            cards.update(claim.seat)
            host_bytes += claim.host_bytes
        return Taken(frozenset(cards), host_bytes)


def _touch(one: Seat, other: Seat) -> bool:
    return not set(one).isdisjoint(other)
