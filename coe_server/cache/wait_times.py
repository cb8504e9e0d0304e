"""Wait times of requests: the upper bound, and an estimate of each expert's wait now. No I/O.

The estimate assumes that no other request arrives. It assigns the turns ahead to the places on the device.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from coe_server.cache.costs import slowest_way_down, slowest_way_up
from coe_server.cache.tiers import Ledger, Tier
from coe_server.engines.engine import Footprint, Seat

if TYPE_CHECKING:
    from coe_server.cache.scheduler import Limits
    from coe_server.cache.slot import Slot
    from coe_server.cache.status import Overview


class Sharer(NamedTuple):
    """An expert that may be evicted from the device for another one, and the duration of its moves."""

    footprint: Footprint
    up_seconds: float  # slowest move to the device
    down_seconds: float  # slowest move off the device
    width: int = 1  # cards
    name: str = ""
    seats: tuple[Seat, ...] = ((0,),)


class Group(NamedTuple):
    """Experts that may evict one another, and the moves that delay each of their turns."""

    experts: tuple[str, ...] = ()
    switch_seconds: float = 0.0  # the slowest
    start_elsewhere_seconds: float = 0.0  # the slowest start on cards beside that of a turn; 0 where there are none
    starts_ahead_seconds: float = 0.0  # of all experts that share no card with these: each may start before them once

    def bound_seconds(self, limits: Limits, widest: int = 1) -> float:
        """Upper bound on the wait for one of them."""
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


class Ahead(NamedTuple):
    """An expert's next turn, as it delays the turns after it."""

    expert: str
    from_disk: bool
    switch_seconds: float
    serving_seconds: float  # for its waiting requests once it is loaded, and for its move off the device


class Expected(NamedTuple):
    """The state of an expert as it affects a request that arrives now; valid until the slot changes."""

    residency: str
    failure: str | None
    at_hand: bool  # loaded, and admits new requests
    on_its_way: bool  # moving to the device now
    from_disk: bool  # needs a cold start; false: a wake
    up_seconds: float  # duration of that move
    serving_seconds: float  # for the requests admitted before this one, once it is loaded
    makes_room: float | None  # grant time of the lease that must end before this request is admitted
    answer_seconds: float  # usual duration of an answer
    turn: Ahead  # of its waiting requests

    def left_to_serve(self, now: float) -> float:
        """`serving_seconds`, less the elapsed part of the answer that must end first."""
        return self.serving_seconds - passed(self.makes_room, self.answer_seconds, now)


def passed(since: float | None, usual_seconds: float, now: float) -> float:
    """Elapsed seconds of an answer that began at `since`, at most `usual_seconds`; 0 if there is none."""
    return 0.0 if since is None else min(now - since, usual_seconds)


class Forecast:
    """Predicts when the experts of `turns` (in order) are loaded.

    `places`: for each expert that shares the device, the seconds until its place can be free. Engines start one at a
    time, the next one not before `starts_from`. During a start loaded experts go on serving, and other experts may
    wake in places that become free.
    """

    def __init__(self, turns: Iterable[Ahead], places: Iterable[float], starts_from: float) -> None:
        self.until: dict[str, float] = {}  # expert -> seconds until it is loaded
        self._places = list(places) or [0.0]
        heapq.heapify(self._places)
        self._starts_from = starts_from
        later: list[Ahead] = []
        for turn in turns:
            if turn.from_disk and (later or self._starts_from > self._places[0]):
                later.append(turn)
            else:
                self._give(turn)
        self.wake_after_all = self._places[0]  # when a wake after all these turns can begin
        for turn in later:
            self._give(turn)
        self.start_after_all = max(self._places[0], self._starts_from)

    def _give(self, turn: Ahead) -> None:
        begins = max(heapq.heappop(self._places), self._starts_from if turn.from_disk else 0.0)
        up = self.until[turn.expert] = begins + turn.switch_seconds
        if turn.from_disk:
            self._starts_from = up
        heapq.heappush(self._places, up + turn.serving_seconds)


class Outlook(NamedTuple):
    """The wait, or the failure, that a request for an expert would meet now."""

    residency: str
    predicted_wait_seconds: float
    failure: str | None
    returns_seconds: float | None = None  # seconds until a failed expert admits requests again


class Waits:
    """Wait times from the present queues and measured costs. `clock` returns seconds."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        overview: Overview,
        ledger: Ledger,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._overview = overview
        self._ledger = ledger
        self._limits = limits
        self._clock = clock
        self._widest = 1  # most leases taken by one request so far
        self._steady: dict[str, tuple[Expected, Outlook]] = {}  # outlooks that do not change with time alone

    def saw(self, leases: int) -> None:
        """Note that a request takes this many leases."""
        self._widest = max(self._widest, leases)

    def outlooks(self) -> Outlooks:
        """Each expert's outlook by name. Valid only until the next await."""
        return Outlooks(self._slots, self._overview, self._clock(), self._steady)

    def predicted_seconds(self, name: str) -> float:
        """Predicted wait of a request that arrives now until its lease, in seconds."""
        return self.outlooks()[self._slots[name].name].predicted_wait_seconds

    def bound_seconds(self) -> float:
        """Upper bound on the wait, with the costs and fan-outs seen so far, in seconds."""
        return self._bound(self._limits, self._widest)

    def bounds_seconds(self) -> dict[str, float]:
        """The same for each local expert: that of its group."""
        bounds = {name: self.bound_of(group) for group in (*self.alone, *self.groups) for name in group.experts}
        return {name: bound for name, bound in bounds.items() if not self._slots[name].expert.remote}

    def bound_of(self, group: Group, limits: Limits | None = None, widest: int | None = None) -> float:
        """The longest wait for an expert of this group.

        The expert with the fewest leases at a time has the longest turn. `limits`: default the server's; `widest`:
        the most leases of one request, default the most so far.
        """
        limits = replace(limits or self._limits, max_concurrency=self.places_of(group))
        return group.bound_seconds(limits, self._widest if widest is None else widest)

    def widest_bound_seconds(self) -> float:
        """The same if a request asks for the maximum number of answers."""
        return self._bound(self._limits, self._limits.max_fan_out)

    def usual_bound_seconds(self) -> float:
        """The bound if every answer takes as long as measured (an estimate before): the wait behind full queues."""
        seconds = min(self.usual_answer_seconds, self._limits.max_generation_seconds)
        return self._bound(replace(self._limits, max_generation_seconds=seconds), self._widest)

    @property
    def usual_answer_seconds(self) -> float:
        """Duration of an answer of the slowest expert, as measured; an estimate before."""
        return max((slot.costs.service for slot in self._slots.values()), default=0.0)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups of experts that may evict one another, with the costs measured so far; longest wait first."""
        host_left = self._ledger.capacity.host - sum(slot.engine.footprint.host for slot in self._slots.values())
        found = groups_of([_sharer(slot) for slot in self._sharers], host_left)
        return tuple(sorted(found, key=lambda group: -self.bound_of(group, widest=1)))

    @property
    def costs_are_measured(self) -> bool:
        """True if every move in the bound was measured."""
        return all("start" in slot.costs.measured for slot in self._sharers)

    @property
    def _sharers(self) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.pin is not Tier.DEVICE and not slot.expert.remote]

    @property
    def alone(self) -> tuple[Group, ...]:
        """Each expert that is never evicted for another one, pinned or remote: its requests wait for its own turn."""
        shared = {slot.name for slot in self._sharers}
        return tuple(Group((name,)) for name in self._slots if name not in shared)

    @property
    def longest(self) -> Group:
        """The experts whose requests may wait longest."""
        return max((*self.groups, *self.alone), key=lambda group: self.bound_of(group, widest=1), default=Group())

    def places_of(self, group: Group) -> int:
        """Leases at a time of its expert with the longest turn: fewer of them never make a turn shorter."""
        return min((self._slots[name].places for name in group.experts), default=self._limits.max_concurrency)

    def _bound(self, limits: Limits, widest: int) -> float:
        return max(self.bound_of(group, limits, widest) for group in (*self.groups, *self.alone) or (Group(),))


class Outlooks(Mapping[str, Outlook]):
    """Each expert's outlook at one moment, computed on access.

    `steady`: a cache of earlier outlooks; an entry is valid while its `Expected` is the same object.
    """

    def __init__(
        self, slots: Mapping[str, Slot], overview: Overview, now: float, steady: dict[str, tuple[Expected, Outlook]]
    ) -> None:
        self._slots = slots
        self._overview = overview
        self._now = now
        self._steady = steady
        self._forecast: Forecast | None = None  # shared by all experts; not needed while all are at hand

    def __getitem__(self, name: str) -> Outlook:
        expected = self._overview.expected_of(name)
        backs_off = self._slots[name].backoff.since is not None
        before, outlook = self._steady.get(name, (None, None))
        if before is expected and outlook is not None and not backs_off:
            return outlook
        outlook = Outlook(expected.residency, self._seconds(name, expected), *self._absence(name, expected.failure))
        if expected.at_hand and expected.makes_room is None and expected.failure is None and not backs_off:
            self._steady[name] = expected, outlook
        return outlook

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def _seconds(self, name: str, expected: Expected) -> float:
        """Seconds until a request that arrives now is granted a lease."""
        serving = expected.left_to_serve(self._now)
        return serving if expected.at_hand else serving + self._until_up(name, expected)

    def _until_up(self, name: str, expected: Expected) -> float:
        """Seconds until it is loaded and admits new requests."""
        forecast = self._forecast = self._forecast or self._overview.forecast(self._now)
        turn = forecast.until.get(name)
        if turn is not None:
            return turn
        if expected.on_its_way:
            return self._overview.seconds_left(name, self._now)
        return (forecast.start_after_all if expected.from_disk else forecast.wake_after_all) + expected.up_seconds

    def _absence(self, name: str, failure: str | None) -> tuple[str | None, float | None]:
        """Why no request is admitted now, and for how many seconds; (None, None) if requests are."""
        slot = self._slots[name]
        if slot.backoff.since is not None:
            refusal = slot.backoff.refusal(self._now)
            return refusal, None if refusal is None else slot.backoff.seconds_left(self._now)
        return failure, None if slot.failure is None else max(0.0, slot.failure.until - self._now)


def _sharer(slot: Slot) -> Sharer:
    """The sharer of a slot. With several seats it may stop first and start on another seat."""
    up, down = slowest_way_up(slot.costs), slowest_way_down(slot.costs)
    stop = down if len(slot.expert.seats) > 1 else 0.0
    return Sharer(slot.engine.footprint, up + stop, down, slot.expert.width, slot.name, slot.seats)
