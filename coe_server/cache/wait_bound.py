"""Upper bounds on the wait of a request, whichever requests arrive. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from coe_server.cache.costs import slowest_way_down, slowest_way_up
from coe_server.cache.tiers import Ledger, Tier
from coe_server.engines.engine import Footprint, Seat

if TYPE_CHECKING:
    from coe_server.cache.policy import Limits
    from coe_server.cache.slot import Slot


class WaitBounds:
    """The bounds of the waits for a server's experts, with the costs measured and the fan-outs seen so far."""

    def __init__(self, slots: Mapping[str, Slot], ledger: Ledger, limits: Limits) -> None:
        self._slots = slots
        self._ledger = ledger
        self._limits = limits
        self._widest = 1  # most leases taken by one request so far

    def saw(self, leases: int) -> None:
        """Note that a request takes this many leases."""
        self._widest = max(self._widest, leases)

    def seconds(self, limits: Limits | None = None, widest: int | None = None) -> float:
        """Upper bound on the wait, with the costs seen so far, in seconds.

        `limits`: default the server's; `widest`: the most leases of one request, default the most so far.
        """
        limits, widest = limits or self._limits, self._widest if widest is None else widest
        return max(group.bound_seconds(limits, widest) for group in (*self.groups, *self.alone) or (Group(),))

    def by_expert(self) -> dict[str, float]:
        """The same for each local expert: that of its group."""
        bounds = {
            name: group.bound_seconds(self._limits, self._widest)
            for group in (*self.groups, *self.alone)
            for name in group.experts
        }
        return {name: bound for name, bound in bounds.items() if not self._slots[name].expert.remote}

    def usual_seconds(self) -> float:
        """The bound if every answer takes as long as measured (an estimate before): the wait behind full queues."""
        seconds = min(self.usual_answer_seconds, self._limits.max_generation_seconds)
        return self.seconds(replace(self._limits, max_generation_seconds=seconds))

    @property
    def usual_answer_seconds(self) -> float:
        """Duration of an answer of the slowest expert, as measured; an estimate before."""
        return max((slot.costs.service for slot in self._slots.values()), default=0.0)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups of experts that may evict one another, with the costs measured so far; longest wait first."""
        host_left = self._ledger.capacity.host - sum(slot.engine.footprint.host for slot in self._slots.values())
        found = groups_of([_sharer(slot) for slot in self._slots.values() if shares_the_device(slot)], host_left)
        return tuple(sorted(found, key=lambda group: -group.bound_seconds(self._limits)))

    @property
    def alone(self) -> tuple[Group, ...]:
        """Each expert that is never evicted for another one, pinned or remote: its requests wait for its own turn."""
        return tuple(
            Group((slot.name,), places=slot.places) for slot in self._slots.values() if not shares_the_device(slot)
        )

    @property
    def longest(self) -> Group:
        """The experts whose requests may wait longest."""
        every = (*self.groups, *self.alone)
        return max(every, key=lambda group: group.bound_seconds(self._limits), default=Group())

    @property
    def are_measured(self) -> bool:
        """True if every move in the bound was measured."""
        return all("start" in slot.costs.measured for slot in self._slots.values() if shares_the_device(slot))


def shares_the_device(slot: Slot) -> bool:
    """True if another expert may take its place on the device."""
    return slot.pin is not Tier.DEVICE and not slot.expert.remote


def _sharer(slot: Slot) -> Sharer:
    """The sharer of a slot. With several seats it may stop first and start on another seat."""
    up, down = slowest_way_up(slot.costs), slowest_way_down(slot.costs)
    stop = down if len(slot.expert.seats) > 1 else 0.0
    return Sharer(slot.engine.footprint, up + stop, down, slot.expert.width, slot.name, slot.seats, slot.places)


class Sharer(NamedTuple):
    """An expert that may be evicted from the device for another one, and the duration of its moves."""

    footprint: Footprint
    up_seconds: float  # slowest move to the device
    down_seconds: float  # slowest move off the device
    width: int = 1  # cards
    name: str = ""
    seats: tuple[Seat, ...] = ((0,),)
    places: int | None = None  # leases at a time; None: `Limits.max_concurrency`


class Group(NamedTuple):
    """Experts that may evict one another, and the moves that delay each of their turns."""

    experts: tuple[str, ...] = ()
    switch_seconds: float = 0.0  # the slowest
    start_elsewhere_seconds: float = 0.0  # the slowest start on cards beside that of a turn; 0 where there are none
    starts_ahead_seconds: float = 0.0  # of all experts that share no card with these: each may start before them once
    places: int | None = None  # the fewest leases at a time; None: `Limits.max_concurrency`

    def limits(self, of_all: Limits) -> Limits:
        """Those of its expert with the longest turn: fewer leases at a time never make a turn shorter."""
        return of_all if self.places is None else replace(of_all, max_concurrency=self.places)

    def bound_seconds(self, limits: Limits, widest: int = 1) -> float:
        """Upper bound on the wait for one of them. `limits`: of all experts."""
        limits = self.limits(limits)
        switch_seconds = self.switch_seconds + self.start_elsewhere_seconds
        return wait_bound_seconds(limits, len(self.experts), switch_seconds, widest) + self.starts_ahead_seconds


def wait_bound_seconds(limits: Limits, sharing: int, switch_seconds: float, widest: int = 1) -> float:
    """Upper bound `max_wait + turns * (turn + switch)`, for `sharing` experts on one device; see `turn_seconds`.

    If no experts share the device, there is no switch, but one turn: that of the expert's own requests.
    """
    waiting = limits.max_wait_seconds + turns_ahead(sharing) * turn_seconds(limits, widest)
    return waiting + turns_ahead(sharing) * switch_seconds if sharing else waiting


def groups_of(sharers: Sequence[Sharer], host_left_bytes: int) -> tuple[Group, ...]:
    """The experts whose waits depend on one another; each is in one group.

    Two are in one group if their seats share a card, directly or over others, and all are where host memory does not
    hold every process (`host_left_bytes` below zero). Proof of a group's bound, for a request that is overdue:

    1. Of the experts in its group those with an earlier deadline come before it, each once: its turn lets in all that
       had come before this request. Each claims a seat, whose experts drain together, so that from the claim to the
       end of the switch pass at most a turn and a switch. On one card that is all; see `turns_ahead`.
    2. On several cards an expert that is not overdue may start on cards without a claim. Engines start one at a time:
       such a start may have begun just before a claimed seat is free, once for each turn.
    3. An overdue expert of another group is ahead in the line of starts if its deadline is earlier, once.
    """
    parts = [list(sharers)] if host_left_bytes < 0 else _connected(sharers)
    starts_elsewhere = max((one.up_seconds for one in sharers), default=0.0) if _some_are_disjoint(sharers) else 0.0
    return tuple(
        Group(
            tuple(one.name for one in part),
            slowest_switch_seconds(part, host_left_bytes),
            starts_elsewhere,
            sum(one.up_seconds for one in sharers if one not in part),
            min((one.places for one in part if one.places is not None), default=None),
        )
        for part in parts
        if part
    )


def _connected(sharers: Iterable[Sharer]) -> list[list[Sharer]]:
    parts: list[tuple[set[int], list[Sharer]]] = []
    for one in sharers:
        cards, members = {card for seat in one.seats for card in seat}, [one]
        apart = []
        for other_cards, others in parts:
            if cards.isdisjoint(other_cards):
                apart.append((other_cards, others))
            else:
                cards, members = cards | other_cards, others + members
        parts = [*apart, (cards, members)]
    return [members for _, members in parts]


def _some_are_disjoint(sharers: Iterable[Sharer]) -> bool:
    """Whether an expert can start on cards that another one does not wait for."""
    seats = {seat for one in sharers for seat in one.seats}
    return any(set(one).isdisjoint(other) for one in seats for other in seats)


def turns_ahead(sharing: int) -> int:
    """Upper bound on turns until an overdue request is admitted: one per expert, its own included, and the present one.

    The expert of the present turn may have another: requests that arrived after its turn began wait for the next.
    """
    return max(sharing, 1) + (sharing > 1)


def turn_seconds(limits: Limits, widest: int = 1) -> float:
    """The longest an expert may keep the device once others are overdue: what was queued when its turn began.

    `widest`: the most answers that one request asks for; it takes a lease for each, `max_concurrency` at most. Requests
    go in strictly in order, so a wide one leaves places empty until it fits. Deal q leases to rounds in that order, a
    new round whenever the next request does not fit into c places: what is in round k has gone in when k - 1 answers of
    the longest kind are over. Two rounds in a row take more than c leases, each but the last at least c - widest + 1:
    there are no more rounds than `_rounds`.
    """
    widest = min(widest, limits.max_concurrency)
    return _rounds(limits.queue_limit, limits.max_concurrency, widest) * limits.max_generation_seconds


def _rounds(queued: int, places: int, widest: int) -> int:
    return min(2 * ceil(queued / places), ceil(queued / (places - widest + 1)))


def slowest_switch_seconds(sharers: Sequence[Sharer], host_left_bytes: int) -> float:
    """Upper bound on a switch: the expert's own move up, after its victims' moves down, one after the other.

    `host_left_bytes`: host memory that is free while every expert has a process; if negative, sleepers must stop too.
    """
    device = sorted(min(filter(None, _freed(one.footprint)), default=0) for one in sharers)
    host = sorted(one.footprint.host for one in sharers)

    def victims(goal: Sharer) -> int:
        for_host = _most_needed(goal.footprint.host, host) if host_left_bytes < 0 else 0
        for_device = goal.width * _most_needed(goal.footprint.device_awake, device)
        return min(for_device + for_host, max(1, len(sharers) - 1))

    down = [one.down_seconds for one in sharers]
    return max((one.up_seconds + sum(nlargest(victims(one), down)) for one in sharers), default=0.0)


def _freed(footprint: Footprint) -> tuple[int, int]:
    """Device bytes freed by a sleep, and by a stop after it."""
    return footprint.device_awake - footprint.device_asleep, footprint.device_asleep


def _most_needed(need_bytes: int, freed: Iterable[int]) -> int:
    """Upper bound on the evictions needed to free `need_bytes`. `freed`: bytes of each eviction, ascending."""
    number, without_one = 1, 0
    for size in filter(None, freed):
        without_one += size
        if without_one >= need_bytes:
            break
        number += 1
    return number
