"""Pure: what the conductor orders next, under which policy. Times come in as seconds, orders go out as values.

Requests for an expert on the device are served while no request is overdue: collating amortises switches. A switch
comes when the waiting is worth its measured cost, or when a request is overdue. Overdue experts go in order of
deadline. One that has to wait claims a seat and the host memory it lacks, and nothing behind it takes that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from coe_server.cache.claims import Claim, Claims, Taken
from coe_server.cache.planner import Never, NotYet, Plan, nobody_can_leave, plan, plan_anew
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier
from coe_server.engines.engine import Footprint, Seat

Retention = Literal["lru", "lfu"]


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of rules. Ours is what the server runs; the others exist to be compared with."""

    name: str
    collates: bool  # requests for an expert on the device overtake those for others; else strict order of arrival
    bounded: bool  # who waits longer than max_wait makes busy experts drain
    weighs_waiting: bool  # waiting that is worth a switch makes busy experts drain
    retention: Retention  # who leaves first


OURS = Policy("coe", collates=True, bounded=True, weighs_waiting=True, retention="lru")
FIFO = Policy("fifo", collates=False, bounded=False, weighs_waiting=False, retention="lru")
LRU = Policy("lru", collates=True, bounded=False, weighs_waiting=False, retention="lru")
LFU = Policy("lfu", collates=True, bounded=False, weighs_waiting=False, retention="lfu")
POLICIES = {policy.name: policy for policy in (OURS, FIFO, LRU, LFU)}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the cache promises its callers."""

    max_wait_seconds: float = 30.0
    queue_limit: int = 64  # leases waited for of one expert
    queue_limit_total: int = 1024  # leases waited for of all experts
    max_concurrency: int = 16  # leases of one engine at a time, where its expert has no number of its own
    max_fan_out: int = 128  # answers that one request may ask for; it takes a lease for each, as many as there may be
    max_generation_seconds: float = 120.0  # one answer may take no longer
    prefetch: bool = True  # bring experts in demand to free room before they are asked for
    sign_of_life_seconds: float = 5.0  # a suspected engine has this long to answer before it is buried
    min_tenure_seconds: float = 0.0  # an expert that has just come is not pressed out by mere waiting


class Queue(NamedTuple):
    """The requests that wait for one expert: to be brought, or, where it drains, to go on."""

    expert: str
    arrivals: tuple[float, ...]  # seconds, oldest first; never empty
    switch_seconds: float  # measured cost of bringing the expert to the device
    weight: float = 1.0  # mean weight of the requests' priorities

    def waited(self, now: float) -> float:
        """Weighted seconds of waiting so far, summed over the queue."""
        return self.weight * (now * len(self.arrivals) - sum(self.arrivals))


class Turn(NamedTuple):
    """An expert that should come to the device.

    A `pressing` turn may make busy experts drain. An `overdue` one that has to wait claims the room it waits for.
    """

    expert: str
    pressing: bool
    overdue: bool


@dataclass(frozen=True, slots=True)
class Orders:
    """What to do now: begin these plans, let these experts drain, refuse the requests that wait for these."""

    plans: tuple[Plan, ...] = ()
    draining: frozenset[str] = frozenset()
    staying: frozenset[str] = frozenset()  # on the device, and it is their turn: requests that wait now are let in
    never: Mapping[str, str] = field(default_factory=dict)  # expert -> why it can never come
    claims: tuple[Claim, ...] = ()  # to be given to the next pass


def conduct(
    standing: Standing,
    queues: Iterable[Queue],
    capacity: Bytes,
    now: float,
    limits: Limits,
    policy: Policy = OURS,
    starting: bool = False,
    starts_on: Seat = (0,),
    claims: Iterable[Claim] = (),
) -> Orders:
    """One pass over every expert that is waited for: which come to the device now, which drain for which.

    Engines start one at a time. While one is `starting` (on the cards of `starts_on`), no room is made for the next
    start: the experts that have it go on serving. The next start keeps its place; once it may begin, nothing behind it
    takes the room. `claims` are those of the pass before.
    """
    queues = tuple(queues)
    arrived = {queue.expert: queue.arrivals[0] for queue in queues}
    overdue = {name for name, oldest in arrived.items() if policy.bounded and now - oldest >= limits.max_wait_seconds}
    kept = Claims(claims, standing, arrived, overdue)
    orders = _Orders(standing, capacity, kept, starts_on if starting else None)
    for turn in turns(queues, now, limits.max_wait_seconds, policy, orders.could_concern):
        tenured_since = INFINITY if turn.overdue else now - limits.min_tenure_seconds
        holds_the_place = orders.give(turn, arrived[turn.expert] if turn.overdue else INFINITY, tenured_since)
        if holds_the_place and (not policy.collates or orders.every_card_is_claimed):
            break
    return orders.so_far()


_Kind = tuple[Tier, Footprint, Tier, tuple[Seat, ...]]  # tier, footprint, pin, seats: such need the same room


class _Orders:
    """The orders of one pass in the making: what has been decided stands for those that come later in it."""

    def __init__(self, standing: Standing, capacity: Bytes, claims: Claims, starts_on: Seat | None) -> None:
        self._standing = standing
        self._capacity = capacity
        self._claims = claims
        self._starts_on = starts_on  # None: no engine starts
        self._taken = Taken(frozenset(), 0)  # by the claims ahead of the turn that is being decided
        self._plans: list[Plan] = []
        self._unseen: list[Plan] = []  # begun, but not yet in the standing: few passes come to a next turn
        self._moving: set[str] = set()  # by those plans
        self._in_vain: set[_Kind] = set()  # there is no room yet for any of this kind
        self._draining: set[str] = set()
        self._staying: set[str] = set()
        self._never: dict[str, str] = {}

    def so_far(self) -> Orders:
        draining, staying = frozenset(self._draining), frozenset(self._staying)
        return Orders(tuple(self._plans), draining, staying, self._never, self._claims.all())

    @property
    def every_card_is_claimed(self) -> bool:
        """No turn behind the last one can be given anything."""
        return bool(self._taken.cards) and self._taken.cards.issuperset(range(len(self._capacity.cards)))

    def could_concern(self, expert: str) -> bool:
        """False for one that a plan of this pass moves, and for one that would have to start while another starts."""
        starts = self._starts_on is not None and expert in self._standing.tiers[Tier.DISK]
        return expert not in self._moving and not starts

    def give(self, turn: Turn, arrived: float, tenured_since: float) -> bool:
        """Decide about one turn, of a request that came at `arrived`; True if it waits for room."""
        while self._unseen:
            self._standing = _after(self._standing, self._unseen.pop())
            self._in_vain.clear()
        goal = self._standing.holding(turn.expert)
        assert goal is not None, "an expert that is waited for takes part"
        self._taken = self._claims.ahead_of(turn.expert, arrived, self._standing, self._starts_on)
        if goal.tier is Tier.DEVICE:
            if self._taken.cards.isdisjoint(goal.seat):
                self._let_stay(goal, turn)
            return False
        if turn.overdue:
            return self._bring_overdue(goal, arrived)
        return self._bring(goal, turn, tenured_since)

    def _bring(self, goal: Holding, turn: Turn, tenured_since: float) -> bool:
        seats = self._taken.leaves(goal.may_come_to)
        kind = goal.tier, goal.footprint, goal.pin, goal.may_come_to
        if not seats or kind in self._in_vain:
            return True  # one before it waits for the same, and is as pressing, unless a switch costs nothing
        goal, capacity = goal._replace(seats=seats), self._taken.left_of(self._capacity)
        if not turn.pressing and nobody_can_leave(self._standing, goal, capacity):
            self._in_vain.add(kind)
            return True
        match plan(self._standing, goal, capacity, tenured_since):
            case Plan() as ready if turn.pressing or not _anyone_waits_for(ready.victims, self._standing):
                self._begin(ready, goal)
                return False
            case Never(sentence) if self._taken.is_nothing:
                self._never[goal.name] = sentence
                return False
            case NotYet(leaving):
                self._in_vain.add(kind)
                if turn.pressing:
                    self._draining.update(leaving)
        return True

    def _bring_overdue(self, goal: Holding, arrived: float) -> bool:
        """It comes to any seat that is not claimed, at once; or waits for the one that it claims."""
        outcome = self._ways(goal, self._taken.leaves(goal.may_come_to))
        if isinstance(outcome, Never | NotYet) and self._may_be_stopped(goal):
            anew = self._ways(goal, self._taken.leaves(tuple([seat for seat in goal.seats if seat != goal.seat])))
            if isinstance(anew, Plan) or isinstance(outcome, Never):
                outcome = anew
        if isinstance(outcome, Plan):
            self._claims.drop(goal.name)
            self._begin(outcome, goal)
            return False
        claimed = self._claims.seat_of(goal.name)
        if claimed is not None:
            kept = self._ways(goal, self._taken.leaves((claimed,)))
            outcome = outcome if isinstance(kept, Never) else kept
        match outcome:
            case NotYet(leaving, seat) if self._taken.cards.isdisjoint(seat):
                self._claims.put(goal, arrived, seat)
                self._taken = self._taken._replace(cards=self._taken.cards.union(seat))
                self._draining.update(leaving)
                self._in_vain.add((goal.tier, goal.footprint, goal.pin, goal.may_come_to))
            case Never(sentence):
                self._claims.drop(goal.name)
                if self._taken.is_nothing:
                    self._never[goal.name] = sentence
                    return False
        return True

    def _ways(self, goal: Holding, seats: tuple[Seat, ...]) -> Plan | NotYet | Never:
        """To these seats; a sleeper's own way is to its own. Where claims have all of them, it waits behind those."""
        capacity = self._taken.left_of(self._capacity)
        if not seats:
            return NotYet((), tuple(self._taken.cards)) if self._taken.cards else plan(self._standing, goal, capacity)
        if goal.tier is Tier.HOST and seats != (goal.seat,):
            return plan_anew(self._standing, goal._replace(seats=seats), capacity)
        return plan(self._standing, goal._replace(seats=seats), capacity)

    def _may_be_stopped(self, goal: Holding) -> bool:
        """It sleeps and could be started anew on other cards now."""
        return goal.tier is Tier.HOST and len(goal.seats) > 1 and self._starts_on is None

    def _let_stay(self, goal: Holding, turn: Turn) -> None:
        """It drains for another one; if its own requests are overdue before that one's, they are let in first."""
        if turn.overdue:
            self._staying.add(goal.name)
            self._standing = self._standing.updated([goal._replace(busy=True)])

    def _begin(self, ready: Plan, goal: Holding) -> None:
        self._plans.append(ready)
        self._moving.update(move.expert for move in ready.moves)
        if ready.moves[-1].is_start:
            self._starts_on = ready.moves[-1].seat
        self._unseen.append(ready)


def turns(
    queues: Iterable[Queue],
    now: float,
    max_wait_seconds: float,
    policy: Policy = OURS,
    concerned: Callable[[str], bool] = lambda expert: True,
) -> Iterator[Turn]:
    """Who should come next, first one first: overdue by deadline, then by waiting per second of switch cost.

    One after the other, because callers seldom need all of them, and which are `concerned` may depend on what was
    done about those before.
    """
    overdue: list[tuple[float, int, Turn]] = []
    others: list[tuple[float, int, Turn]] = []
    for number, queue in enumerate(queues):
        oldest = queue.arrivals[0]
        if policy.bounded and now - oldest >= max_wait_seconds:
            overdue.append((oldest, number, Turn(queue.expert, pressing=True, overdue=True)))
        elif policy.weighs_waiting:
            waited, switch_seconds = queue.waited(now), queue.switch_seconds
            turn = Turn(queue.expert, waited >= switch_seconds or not policy.collates, overdue=False)
            others.append((-waited / max(switch_seconds, _INSTANT), number, turn))
        else:
            others.append((oldest, number, Turn(queue.expert, not policy.collates, overdue=False)))
    for line in overdue, others:
        line.sort()
        for _, _, turn in line:
            if concerned(turn.expert):
                yield turn


def seconds_until_pressing(
    queues: Iterable[Queue], now: float, max_wait_seconds: float, policy: Policy = OURS
) -> float | None:
    """Seconds until the next queue becomes pressing or overdue if nothing else happens; None if none will."""
    pending: list[float] = []
    for queue in queues:
        until_overdue = max_wait_seconds - (now - queue.arrivals[0]) if policy.bounded else None
        if until_overdue is not None:
            pending.append(until_overdue)
        if policy.weighs_waiting and (until_overdue is None or until_overdue > 0):
            pending.append((queue.switch_seconds - queue.waited(now)) / (queue.weight * len(queue.arrivals)))
    return min((seconds for seconds in pending if seconds > 0), default=None)


def seconds_until_tenured(standing: Standing, now: float, min_tenure_seconds: float) -> float | None:
    """Seconds until the next expert that is waited for may be pressed out of the device; None if all may be."""
    left = (
        holding.since + min_tenure_seconds - now for holding in standing.tiers[Tier.DEVICE].values() if holding.wanted
    )
    return min((seconds for seconds in left if seconds > 0), default=None)


def _anyone_waits_for(victims: Iterable[str], standing: Standing) -> bool:
    return any(holding.wanted for name in victims if (holding := standing.holding(name)) is not None)


def _after(standing: Standing, begun: Plan) -> Standing:
    """The same experts once `begun` is under way: where they will stand, and not to be touched."""
    return standing.updated(
        holding._replace(tier=move.target, busy=True, seat=move.seat)
        for move in begun.moves
        if (holding := standing.holding(move.expert)) is not None
    )


INFINITY = float("inf")
_INSTANT = 1e-6  # seconds; keeps the ratio finite for an expert that costs nothing to bring
