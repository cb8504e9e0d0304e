"""Pure: which expert is next among those that requests wait for, and when that may change. Times are in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from coe_server.cache.policy import OURS, Policy
from coe_server.cache.tiers import Standing, Tier


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


_INSTANT = 1e-6  # seconds; keeps the ratio finite for an expert without load cost
