"""Pure: what the conductor orders next. No clock, no I/O; times come in as seconds, orders go out as values.

Requests for an expert on the device go on while nobody is overdue: collating amortises switches. A switch comes when
the waiting is worth its measured cost, or when somebody is overdue. Overdue experts go in order of deadline, and
nobody behind one takes the room it waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from coe_server.cache.planner import Holding, Never, NotYet, Plan, plan
from coe_server.cache.policy import OURS, Policy
from coe_server.cache.tiers import Bytes, Tier


@dataclass(frozen=True, slots=True)
class Limits:
    """What the cache promises its callers."""

    max_wait_seconds: float = 30.0
    queue_limit: int = 64  # requests waiting for one expert
    queue_limit_total: int = 1024  # requests waiting for all experts
    max_concurrency: int = 16  # requests inside one engine
    max_generation_seconds: float = 120.0  # one answer may take no longer
    prefetch: bool = True  # bring experts in demand to free room before they are asked for
    sign_of_life_seconds: float = 5.0  # a suspected engine has this long to answer before it is buried
    min_tenure_seconds: float = 0.0  # an expert that has just come is not pressed out by mere waiting


@dataclass(frozen=True, slots=True)
class Queue:
    """The requests that wait for one expert which is not on the device."""

    expert: str
    arrivals: tuple[float, ...]  # seconds, oldest first; never empty
    switch_seconds: float  # measured cost of bringing the expert to the device
    weight: float = 1.0  # mean weight of the requests' priorities

    def waited(self, now: float) -> float:
        """Weighted seconds of waiting so far, summed over the queue."""
        return self.weight * sum(now - arrival for arrival in self.arrivals)


@dataclass(frozen=True, slots=True)
class Turn:
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
    never: Mapping[str, str] = field(default_factory=dict)  # expert -> why it can never come


def conduct(
    holdings: Sequence[Holding],
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
    plans: list[Plan] = []
    draining: set[str] = set()
    never: dict[str, str] = {}
    on_disk = {holding.name for holding in holdings if holding.tier is Tier.DISK}
    for turn in turns(queues, now, limits.max_wait_seconds, policy):
        if starting and turn.expert in on_disk:
            continue
        match plan(holdings, turn.expert, capacity, protect_tenure=not turn.overdue):
            case Plan() as ready if turn.pressing or not _anyone_waits_for(ready.victims, holdings):
                plans.append(ready)
                starting = starting or ready.moves[-1].source is Tier.DISK
                holdings = _after(holdings, ready)
                continue
            case Never(sentence):
                never[turn.expert] = sentence
                continue
            case NotYet(leaving) if turn.pressing:
                draining.update(leaving)
        if turn.overdue or not policy.collates:
            break
    return Orders(tuple(plans), frozenset(draining), never)


def turns(queues: Iterable[Queue], now: float, max_wait_seconds: float, policy: Policy = OURS) -> tuple[Turn, ...]:
    """Who should come next, first one first: overdue by deadline, then by waiting per second of switch cost."""

    def overdue(queue: Queue) -> bool:
        return policy.bounded and now - queue.arrivals[0] >= max_wait_seconds

    def urgency(queue: Queue) -> tuple[bool, float]:
        if overdue(queue) or not policy.weighs_waiting:
            return (not overdue(queue), queue.arrivals[0])
        return (True, -queue.waited(now) / max(queue.switch_seconds, _INSTANT))

    def pressing(queue: Queue) -> bool:
        return overdue(queue) or not policy.collates or (policy.weighs_waiting and worth_it(queue))

    def worth_it(queue: Queue) -> bool:
        return queue.waited(now) >= queue.switch_seconds

    ordered = sorted(queues, key=urgency)
    return tuple(Turn(queue.expert, pressing(queue), overdue(queue)) for queue in ordered)


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


def turn_seconds(limits: Limits) -> float:
    """The longest an expert may keep the device once others are overdue: what was queued when its turn began."""
    return ceil(limits.queue_limit / limits.max_concurrency) * limits.max_generation_seconds


def wait_bound_seconds(limits: Limits, sharing: int, switch_seconds: float) -> float:
    """The longest anybody waits: `max_wait + n * (turn + switch)`, n the unpinned experts that share the device.

    `switch_seconds` is the slowest measured move, the victims' included, and a cold start if an expert may be on disk.
    """
    return limits.max_wait_seconds + sharing * (turn_seconds(limits) + switch_seconds)


def _anyone_waits_for(victims: Iterable[str], holdings: Sequence[Holding]) -> bool:
    leaving = set(victims)
    return any(holding.wanted for holding in holdings if holding.name in leaving)


def _after(holdings: Sequence[Holding], begun: Plan) -> list[Holding]:
    """The same experts once `begun` is under way: where they will stand, and not to be touched."""
    target = {move.expert: move.target for move in begun.moves}
    return [
        replace(holding, tier=target[holding.name], busy=True) if holding.name in target else holding
        for holding in holdings
    ]


_INSTANT = 1e-6  # seconds; keeps the ratio finite for an expert that costs nothing to bring
