"""Pure: the orders of one pass over the waiting requests, under a policy. Times are in seconds.

Requests for a loaded expert are served while no request is overdue: collating amortises switches. A switch is made
when the accumulated waiting exceeds its measured cost, or when a request is overdue. Overdue experts are served by
deadline. One that must wait claims a seat and the host memory that it still needs; later deadlines cannot take them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from coe_server.cache.claims import Claim, Claims, Taken
from coe_server.cache.planner import Never, NotYet, Plan, no_expert_can_leave, plan, plan_anew, plan_sparing_sleepers
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier
from coe_server.engines.engine import Footprint, Seat

Retention = Literal["lru", "lfu"]
INFINITY = float("inf")
_SEVERAL = 2  # cards


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of rules. The server uses `OURS`; the others are baselines for comparison."""

    name: str
    collates: bool  # requests for a loaded expert overtake those for others; false: strict order of arrival
    bounded: bool  # a request that waits longer than max_wait makes busy experts drain
    weighs_waiting: bool  # the most waiting per second of switch cost comes first
    retention: Retention  # which expert is evicted first
    drains_for_waiting: bool = (
        True  # waiting that exceeds the switch cost makes busy experts drain, where it is weighed
    )


OURS = Policy("coe", collates=True, bounded=True, weighs_waiting=True, retention="lru")
FIFO = Policy("fifo", collates=False, bounded=False, weighs_waiting=False, retention="lru")
LRU = Policy("lru", collates=True, bounded=False, weighs_waiting=False, retention="lru")
LFU = Policy("lfu", collates=True, bounded=False, weighs_waiting=False, retention="lfu")


def on_cards(policy: Policy, number: int) -> Policy:
    """On several cards waiting alone makes no busy expert drain: an idle one is soon found."""
    return policy if number < _SEVERAL else replace(policy, drains_for_waiting=False)


POLICIES = {policy.name: policy for policy in (OURS, FIFO, LRU, LFU)}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on queues, concurrency and waiting."""

    max_wait_seconds: float = 30.0
    queue_limit: int = 64  # waiting leases per expert
    queue_limit_total: int = 1024  # waiting leases of all experts together
    max_concurrency: int = 16  # leases of one engine at a time, where its expert has no number of its own
    max_fan_out: int = 128  # answers that one request may ask for; it takes a lease for each, as many as there may be
    max_generation_seconds: float = 120.0  # per answer
    prefetch: bool = True  # load likely experts, and free memory for them, before a request
    probe_timeout_seconds: float = 5.0  # timeout of a liveness probe; then the engine is stopped
    death_notice_seconds: float = 8.0  # vLLM's API process outlives a killed engine core by up to 7 s
    min_tenure_seconds: float = 0.0  # for so long an expert with waiting requests is evicted for overdue ones only


class Queue(NamedTuple):
    """The requests that wait for one expert: until it is loaded or, if it drains, until it admits requests again."""

    expert: str
    arrivals: tuple[float, ...]  # seconds, oldest first; never empty
    switch_seconds: float  # measured cost of loading the expert
    weight: float = 1.0  # mean weight of the requests' priorities
    start_seconds: float = 0.0  # measured cost of starting it anew

    def waited(self, now: float) -> float:
        """Weighted waiting time so far, summed over the queue, in seconds."""
        return self.weight * (now * len(self.arrivals) - sum(self.arrivals))


class Turn(NamedTuple):
    """An expert that should be loaded.

    A `pressing` turn may make busy experts drain. An `overdue` one that must wait claims the memory it waits for.
    """

    expert: str
    pressing: bool
    overdue: bool
    may_restart: bool = False  # overdue for as long as a start takes


@dataclass(frozen=True, slots=True)
class Orders:
    """What to do now: plans to begin, experts to drain, experts whose waiting requests are refused."""

    plans: tuple[Plan, ...] = ()
    draining: frozenset[str] = frozenset()
    staying: frozenset[str] = frozenset()  # loaded, and it is their turn: requests that wait now are admitted
    never: Mapping[str, str] = field(default_factory=dict)  # expert -> why it can never be loaded
    claims: tuple[Claim, ...] = ()  # input of the next pass


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
    """One pass over all experts with waiting requests: which are loaded now, and which drain for them.

    Engines start one at a time. While one is `starting` (on the cards of `starts_on`), no memory is freed for the
    next start, so loaded experts go on serving. The next start keeps its position. `claims` come from the last pass.
    """
    queues = tuple(queues)
    arrived = {queue.expert: queue.arrivals[0] for queue in queues}
    overdue = {name for name, oldest in arrived.items() if policy.bounded and now - oldest >= limits.max_wait_seconds}
    kept = Claims(claims, standing, arrived, overdue)
    orders = _Orders(standing, capacity, kept, starts_on if starting else None)
    for turn in turns(queues, now, limits.max_wait_seconds, policy, orders.could_concern):
        tenured_since = INFINITY if turn.overdue else now - limits.min_tenure_seconds
        holds_the_place = orders.give(turn, arrived[turn.expert] if turn.overdue else INFINITY, tenured_since)
        if holds_the_place and (not policy.collates or orders.taken.is_every_card_of(capacity)):
            break
    return orders.so_far()


# tier, footprint, pin, seats: experts of one kind need the same memory
_Kind = tuple[Tier, Footprint, Tier, tuple[Seat, ...]]


class _Orders:
    """The orders of one pass under construction. Each decision is final for the turns after it."""

    def __init__(self, standing: Standing, capacity: Bytes, claims: Claims, starts_on: Seat | None) -> None:
        self._standing = standing
        self._capacity = capacity
        self._claims = claims
        self._starts_on = starts_on  # None: no engine is starting
        self.taken = Taken(frozenset(), 0)  # by claims with an earlier deadline than the current turn
        self._plans: list[Plan] = []
        self._unseen: list[Plan] = []  # not yet in the standing; applied lazily, since few passes reach a next turn
        self._moving: set[str] = set()  # in those plans
        self._in_vain: set[_Kind] = set()  # kinds for which there is no memory yet
        self._draining: set[str] = set()
        self._staying: set[str] = set()
        self._never: dict[str, str] = {}

    def so_far(self) -> Orders:
        draining, staying = frozenset(self._draining), frozenset(self._staying)
        return Orders(tuple(self._plans), draining, staying, self._never, self._claims.all())

    def could_concern(self, expert: str) -> bool:
        """False if a plan of this pass moves it, or if it would have to start while another engine starts."""
        starts = self._starts_on is not None and expert in self._standing.tiers[Tier.DISK]
        return expert not in self._moving and not starts

    def give(self, turn: Turn, arrived: float, tenured_since: float) -> bool:
        """Decide one turn, whose request arrived at `arrived`. Returns True if it must wait for memory."""
        while self._unseen:
            self._standing = _after(self._standing, self._unseen.pop())
            self._in_vain.clear()
        goal = self._standing.holding(turn.expert)
        assert goal is not None, "an expert with waiting requests takes part"
        self.taken = self._claims.ahead_of(turn.expert, arrived, self._standing, self._starts_on)
        if goal.tier is Tier.DEVICE:
            if turn.overdue and self.taken.cards.isdisjoint(goal.seat):  # its own requests go in before it leaves
                self._staying.add(goal.name)
                self._standing = self._standing.updated([goal._replace(busy=True)])
            return False
        if turn.overdue:
            return self._bring_overdue(goal, arrived, turn.may_restart)
        return self._bring(goal, turn, tenured_since)

    def _bring(self, goal: Holding, turn: Turn, tenured_since: float) -> bool:
        seats = self.taken.leaves(goal.may_come_to)
        kind = goal.tier, goal.footprint, goal.pin, goal.may_come_to
        if not seats or kind in self._in_vain:
            return True  # an earlier turn waits for the same, and is as pressing unless its switch costs nothing
        goal, capacity = goal._replace(seats=seats), self.taken.left_of(self._capacity)
        if not turn.pressing and no_expert_can_leave(self._standing, goal, capacity):
            self._in_vain.add(kind)
            return True
        match _plan(self._standing, goal, capacity, tenured_since):
            case Plan() as ready if turn.pressing or not _anyone_waits_for(ready.victims, self._standing):
                self._begin(ready, goal)
                return False
            case Never(sentence) if self.taken.is_nothing:
                self._never[goal.name] = sentence
                return False
            case NotYet(leaving):
                self._in_vain.add(kind)
                if turn.pressing:
                    self._draining.update(leaving)
        return True

    def _bring_overdue(self, goal: Holding, arrived: float, may_restart: bool) -> bool:
        """Load it now on any unclaimed seat, or let it wait for the seat that it claims."""
        outcome = self._to_any_seat(goal, may_restart)
        claimed = self._claims.seat_of(goal.name)
        if claimed is not None and not isinstance(outcome, Plan):
            kept = self._to_claimed_seat(goal, claimed)
            outcome = outcome if isinstance(kept, Never) else kept
        match outcome:
            case Plan():
                self._claims.drop(goal.name)
                self._begin(outcome, goal)
                return False
            case NotYet(leaving, seat) if self.taken.cards.isdisjoint(seat):
                self._claims.put(goal, arrived, seat)
                self.taken = self.taken._replace(cards=self.taken.cards.union(seat))
                self._draining.update(leaving)
                self._in_vain.add((goal.tier, goal.footprint, goal.pin, goal.may_come_to))
            case Never(sentence):
                self._claims.drop(goal.name)
                if self.taken.is_nothing:
                    self._never[goal.name] = sentence
                    return False
        return True

    def _to_any_seat(self, goal: Holding, may_restart: bool) -> Plan | NotYet | Never:
        outcome = self._ways(goal, self.taken.leaves(goal.may_come_to))
        wants_another = isinstance(outcome, Never) or (isinstance(outcome, NotYet) and may_restart)
        can_move = goal.tier is Tier.HOST and len(goal.seats) > 1 and self._starts_on is None
        if wants_another and can_move:
            anew = self._ways(goal, self.taken.leaves(tuple([seat for seat in goal.seats if seat != goal.seat])))
            if isinstance(anew, Plan) or isinstance(outcome, Never):
                return anew
        return outcome

    def _to_claimed_seat(self, goal: Holding, claimed: Seat) -> Plan | NotYet | Never:
        kept = self._ways(goal, self.taken.leaves((claimed,)))
        must_wait = isinstance(kept, Plan) and kept.moves[-1].is_start and self._starts_on is not None
        return NotYet((), claimed) if must_wait else kept

    def _ways(self, goal: Holding, seats: tuple[Seat, ...]) -> Plan | NotYet | Never:
        """The plan over these seats; a sleeper is woken on its own seat only. Without seats it waits for claims."""
        capacity = self.taken.left_of(self._capacity)
        if not seats:
            claimed = tuple(self.taken.cards)
            return NotYet((), claimed) if claimed else _plan(self._standing, goal, capacity)
        if goal.tier is Tier.HOST and seats != (goal.seat,):
            return plan_anew(self._standing, goal._replace(seats=seats), capacity)
        return _plan(self._standing, goal._replace(seats=seats), capacity)

    def _begin(self, ready: Plan, goal: Holding) -> None:
        self._plans.append(ready)
        self._moving.update(move.expert for move in ready.moves)
        if ready.moves[-1].is_start:
            self._starts_on = ready.moves[-1].seat
        self._unseen.append(ready)


def _plan(standing: Standing, goal: Holding, capacity: Bytes, tenured_since: float = INFINITY) -> Plan | NotYet | Never:
    """The plan; on several cards sleepers stop for room on a card only if nothing else can make it."""
    if len(capacity.cards) >= _SEVERAL:
        found = plan_sparing_sleepers(standing, goal, capacity, tenured_since)
        if not isinstance(found, Never):
            return found
    return plan(standing, goal, capacity, tenured_since)


def turns(
    queues: Iterable[Queue],
    now: float,
    max_wait_seconds: float,
    policy: Policy = OURS,
    concerned: Callable[[str], bool] = lambda expert: True,
) -> Iterator[Turn]:
    """The experts to load next, in order: overdue by deadline, then by waiting per second of switch cost.

    Lazy: callers seldom need all of them, and `concerned` may depend on the decisions about earlier turns.
    """
    overdue: list[tuple[float, int, Turn]] = []
    others: list[tuple[float, int, Turn]] = []
    for number, queue in enumerate(queues):
        oldest = queue.arrivals[0]
        if policy.bounded and now - oldest >= max_wait_seconds:
            restarts = now - oldest >= max_wait_seconds + queue.start_seconds
            overdue.append((oldest, number, Turn(queue.expert, pressing=True, overdue=True, may_restart=restarts)))
        elif policy.weighs_waiting:
            waited, switch_seconds = queue.waited(now), queue.switch_seconds
            worth_it = policy.drains_for_waiting and waited >= switch_seconds
            turn = Turn(queue.expert, worth_it or not policy.collates, overdue=False)
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
        if until_overdue is not None and queue.start_seconds:
            pending.append(until_overdue + queue.start_seconds)
        if policy.weighs_waiting and policy.drains_for_waiting and (until_overdue is None or until_overdue > 0):
            pending.append((queue.switch_seconds - queue.waited(now)) / (queue.weight * len(queue.arrivals)))
    return min((seconds for seconds in pending if seconds > 0), default=None)


def seconds_until_tenured(standing: Standing, now: float, min_tenure_seconds: float) -> float | None:
    """Seconds until the next loaded expert with waiting requests may be evicted again; None if all may be."""
    left = (
        holding.since + min_tenure_seconds - now for holding in standing.tiers[Tier.DEVICE].values() if holding.wanted
    )
    return min((seconds for seconds in left if seconds > 0), default=None)


def _anyone_waits_for(victims: Iterable[str], standing: Standing) -> bool:
    return any(holding.wanted for name in victims if (holding := standing.holding(name)) is not None)


def _after(standing: Standing, begun: Plan) -> Standing:
    """The standing once `begun` is under way: its experts are busy and in their target tiers."""
    return standing.updated(
        holding._replace(tier=move.target, busy=True, seat=move.seat)
        for move in begun.moves
        if (holding := standing.holding(move.expert)) is not None
    )


_INSTANT = 1e-6  # seconds; keeps the ratio finite for an expert without load cost
