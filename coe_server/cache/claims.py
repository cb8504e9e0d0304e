"""Pure: seats and host memory reserved for overdue experts against every expert with a later deadline."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from coe_server.cache.tiers import Bytes, Holding, Standing, Tier
from coe_server.engines.engine import Seat


class Claim(NamedTuple):
    """One overdue expert's claim: a seat, and the host memory that it still needs.

    A claim is kept from pass to pass. No turn with a later deadline may use what it covers.
    """

    expert: str
    arrived: float  # arrival of its oldest request, in seconds
    seat: Seat
    host_bytes: int


class Taken(NamedTuple):
    """The cards and host memory covered by claims with an earlier deadline; this turn may not use them."""

    cards: frozenset[int]
    host_bytes: int

    @property
    def is_nothing(self) -> bool:
        return not self.cards and not self.host_bytes

    def is_every_card_of(self, capacity: Bytes) -> bool:
        """True if no later turn can be given a card."""
        return bool(self.cards) and self.cards.issuperset(range(len(capacity.cards)))

    def leaves(self, seats: tuple[Seat, ...]) -> tuple[Seat, ...]:
        """The seats without a claimed card."""
        return tuple([seat for seat in seats if self.cards.isdisjoint(seat)]) if self.cards else seats

    def left_of(self, capacity: Bytes) -> Bytes:
        """The capacity less the claimed host memory."""
        return capacity - Bytes(host=self.host_bytes) if self.host_bytes else capacity


_NOTHING = Taken(frozenset(), 0)


class Claims:
    """The claims of one pass.

    A claim of the last pass is kept while its expert is overdue, or has no turn in this pass (its start must wait).
    """

    def __init__(
        self, kept: Iterable[Claim], standing: Standing, arrived: Mapping[str, float], overdue: Collection[str]
    ) -> None:
        """`arrived`: arrival of the oldest request of each expert that may have a turn in this pass."""
        self._claims: dict[str, Claim] = {}
        self._settled: set[str] = set()  # decided in this pass: they precede every later turn
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
        """Claim this seat and the host memory that the expert still needs."""
        lacks = goal.footprint.host - goal.held.host
        self._claims[goal.name] = Claim(goal.name, arrived, seat, max(0, lacks))
        self._settled.add(goal.name)

    def drop(self, expert: str) -> None:
        self._claims.pop(expert, None)

    def ahead_of(self, expert: str, arrived: float, standing: Standing, starts_on: Seat | None) -> Taken:
        """The claims with an earlier deadline than that of a request that arrived at `arrived`.

        A claim that needs a start on a card of `starts_on`, where another engine is starting, is left out: until that
        start ends it cannot be met, so others may use the memory.
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
