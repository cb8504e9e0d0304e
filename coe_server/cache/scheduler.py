"""Pure: what the conductor orders next, under which policy. Times come in as seconds, orders go out as values.

Requests for an expert on the device are served while no request is overdue: collating amortises switches. A switch
comes when the waiting is worth its measured cost, or when a request is overdue. Overdue experts go in order of
deadline, and nothing behind one takes the room it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from coe_server.cache.planner import Never, NotYet, Plan, nobody_can_leave, plan
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier
from coe_server.engines.engine import Footprint

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
    max_concurrency: int = 16  # leases of one engine at a time: a request takes one for each answer it asks for
    max_fan_out: int = 128  # answers that one request may ask for; it never takes more than `max_concurrency` leases
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

    A `pressing` turn may make busy experts drain. Nobody behind an `overdue` turn may take the room it waits for.
    """

    expert: str
    pressing: bool
    overdue: bool


@dataclass(frozen=True, slots=True)
class Orders:
    """What to do now: begin these plans, let these experts drain, refuse those who wait for these."""

    plans: tuple[Plan, ...] = ()
    draining: frozenset[str] = frozenset()
    staying: frozenset[str] = frozenset()  # on the device, and it is their turn: who waits for them now is let in
    never: Mapping[str, str] = field(default_factory=dict)  # expert -> why it can never come


def conduct(
    standing: Standing,
    queues: Iterable[Queue],
    capacity: Bytes,
    now: float,
    limits: Limits,
    policy: Policy = OURS,
    starting: bool = False,
) -> Orders:
    """One pass over everyone who waits: who comes to the device now, who drains for whom.

    Engines start one at a time. While one is `starting`, no room is made for the next start: whoever has it goes on
    serving. The next start keeps its place; once it may begin, nobody behind it takes the room.
    """
    orders = _Orders(standing, capacity, starting)
    for turn in turns(queues, now, limits.max_wait_seconds, policy, orders.could_concern):
        tenured_since = INFINITY if turn.overdue else now - limits.min_tenure_seconds
        holds_the_place = orders.give(turn, tenured_since)
        if holds_the_place and (turn.overdue or not policy.collates):
            break
    return orders.so_far()


_Kind = tuple[Tier, Footprint, Tier]  # where they are, what they hold, where they are pinned: they need the same room


class _Orders:
    """The orders of one pass in the making: what has been decided stands for those who come later in it."""

    def __init__(self, standing: Standing, capacity: Bytes, starting: bool) -> None:
        self._standing = standing
        self._capacity = capacity
        self._starting = starting
        self._plans: list[Plan] = []
        self._unseen: list[Plan] = []  # begun, but not yet in the standing: few passes come to a next turn
        self._moving: set[str] = set()  # by those plans
        self._in_vain: set[_Kind] = set()  # there is no room yet for any of this kind
        self._draining: set[str] = set()
        self._staying: set[str] = set()
        self._never: dict[str, str] = {}

    def so_far(self) -> Orders:
        return Orders(tuple(self._plans), frozenset(self._draining), frozenset(self._staying), self._never)

    def could_concern(self, expert: str) -> bool:
        """False for whom a plan of this pass moves, and for who would have to start while another engine does."""
        return expert not in self._moving and not (self._starting and expert in self._standing.tiers[Tier.DISK])

    def give(self, turn: Turn, tenured_since: float) -> bool:
        """Decide about one turn; True if it waits for room that nobody behind it may take."""
        while self._unseen:
            self._standing = _after(self._standing, self._unseen.pop())
            self._in_vain.clear()
        goal = self._standing.holding(turn.expert)
        assert goal is not None, "who waits takes part"
        if goal.tier is Tier.DEVICE:
            self._let_stay(goal, turn)
            return False
        return self._bring(goal, turn, tenured_since)

    def _bring(self, goal: Holding, turn: Turn, tenured_since: float) -> bool:
        kind = goal.tier, goal.footprint, goal.pin
        if kind in self._in_vain and not turn.overdue:
            return True  # one before it waits for the same, and is as pressing, unless a switch costs nothing
        if not turn.pressing and nobody_can_leave(self._standing, goal, self._capacity):
            self._in_vain.add(kind)
            return True
        match plan(self._standing, goal, self._capacity, tenured_since):
            case Plan() as ready if turn.pressing or not _anyone_waits_for(ready.victims, self._standing):
                self._begin(ready, goal)
                return False
            case Never(sentence):
                self._never[goal.name] = sentence
                return False
            case NotYet(leaving):
                self._in_vain.add(kind)
                if turn.pressing:
                    self._draining.update(leaving)
        return True

    def _let_stay(self, goal: Holding, turn: Turn) -> None:
        """It drains for somebody; if its own requests are overdue before theirs, they are let in first."""
        if turn.overdue:
            self._staying.add(goal.name)
            self._standing = self._standing.updated([goal._replace(busy=True)])

    def _begin(self, ready: Plan, goal: Holding) -> None:
        self._plans.append(ready)
        self._moving.update(move.expert for move in ready.moves)
        self._starting = self._starting or goal.tier is Tier.DISK
        self._unseen.append(ready)


def turns(
    queues: Iterable[Queue],
    now: float,
    max_wait_seconds: float,
    policy: Policy = OURS,
    concerned: Callable[[str], bool] = lambda expert: True,
) -> Iterator[Turn]:
    """Who should come next, first one first: overdue by deadline, then by waiting per second of switch cost.

    One after the other, because whoever asks seldom needs all of them, and who is `concerned` may depend on what was
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
        holding._replace(tier=move.target, busy=True)
        for move in begun.moves
        if (holding := standing.holding(move.expert)) is not None
    )


INFINITY = float("inf")
_INSTANT = 1e-6  # seconds; keeps the ratio finite for an expert that costs nothing to bring
