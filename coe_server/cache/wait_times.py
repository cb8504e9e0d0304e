"""Wait times of requests: the upper bound, and an estimate of each expert's wait now. No clock, no I/O.

The estimate supposes that no other request comes: the turns ahead, dealt to the places on the device.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from coe_server.cache.tiers import Ledger, Tier
from coe_server.engines.engine import Footprint, Seat

if TYPE_CHECKING:
    from coe_server.cache.scheduler import Limits
    from coe_server.cache.slot import Slot
    from coe_server.cache.status import Overview


class Sharer(NamedTuple):
    """An expert that may have to make room on the device for another one, and what its moves take."""

    footprint: Footprint
    up_seconds: float  # to the device from wherever it may be
    down_seconds: float  # from wherever it may be to wherever it has to go
    width: int = 1  # cards that it takes
    name: str = ""
    seats: tuple[Seat, ...] = ((0,),)


class Group(NamedTuple):
    """Experts that may have to make room for one another, and what keeps each of their turns waiting."""

    experts: tuple[str, ...] = ()
    switch_seconds: float = 0.0  # the slowest
    start_elsewhere_seconds: float = 0.0  # the slowest start on cards beside that of a turn; 0 where there are none
    starts_ahead_seconds: float = 0.0  # of all experts that share no card with these: each may start before them once

    def bound_seconds(self, limits: Limits, widest: int = 1) -> float:
        """The longest wait for one of them."""
        switch_seconds = self.switch_seconds + self.start_elsewhere_seconds
        return wait_bound_seconds(limits, len(self.experts), switch_seconds, widest) + self.starts_ahead_seconds


def wait_bound_seconds(limits: Limits, sharing: int, switch_seconds: float, widest: int = 1) -> float:
    """`max_wait + turns * (turn + switch)`, for so many experts that share the device; see `turn_seconds`.

    Where no expert shares the device there are no switches, but there is a turn: that of its own requests.
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
    """The most turns until an overdue request is let in: one of each expert, its own included, and the one under way.

    That expert may have another turn: requests for it that came after its turn had begun wait for the next.
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
    """The longest that bringing one of them takes: its own way up, and before it, one by one, those that make room.

    `host_left_bytes` would be left of host memory if every expert had a process; below zero sleepers have to stop, too.
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
    """Of the device: by falling asleep, by stopping after that."""
    return footprint.device_awake - footprint.device_asleep, footprint.device_asleep


def _most_needed(need_bytes: int, freed: Iterable[int]) -> int:
    """Upper bound on the evictions that free so much; `freed` by each, least first. No needless one is counted."""
    number, without_one = 1, 0
    for size in filter(None, freed):
        without_one += size
        if without_one >= need_bytes:
            break
        number += 1
    return number


class Ahead(NamedTuple):
    """An expert whose turn comes, as far as those behind it are concerned."""

    expert: str
    from_disk: bool
    switch_seconds: float
    serving_seconds: float  # of those who wait for it, once it is there, and of its way off the device again


class Expected(NamedTuple):
    """What a request that arrived now would meet at an expert, until something about it changes."""

    residency: str
    failure: str | None
    at_hand: bool  # it is up, and lets in those who come
    on_its_way: bool  # to the device, now
    from_disk: bool  # else it has to start, or is woken from where it rests
    up_seconds: float  # which takes so long
    serving_seconds: float  # of those who go in before, once it is up
    makes_room: float | None  # of those, when the one inside was let in who has to end first
    answer_seconds: float  # that an answer usually takes
    turn: Ahead  # of those who wait for it

    def left_to_serve(self, now: float) -> float:
        """`serving_seconds`, less what is over of the answer that goes on inside."""
        return self.serving_seconds - passed(self.makes_room, self.answer_seconds, now)


def passed(since: float | None, usual_seconds: float, now: float) -> float:
    """Of an answer that began then and takes as long as usual: none where there is none, never more than all of it."""
    return 0.0 if since is None else min(now - since, usual_seconds)


class Forecast:
    """When each of `turns`, first one first, will have its expert on the device.

    `places`: for each expert that shares the device, in how many seconds it can have left it. Engines start one at a
    time, the next one from `starts_from` on; while one starts, the others with a place go on, and wakes take the
    places that become free.
    """

    def __init__(self, turns: Iterable[Ahead], places: Iterable[float], starts_from: float) -> None:
        self.until: dict[str, float] = {}  # expert -> seconds
        self._places = list(places) or [0.0]
        heapq.heapify(self._places)
        self._starts_from = starts_from
        later: list[Ahead] = []
        for turn in turns:
            if turn.from_disk and (later or self._starts_from > self._places[0]):
                later.append(turn)
            else:
                self._give(turn)
        self.wake_after_all = self._places[0]  # when an expert whose turn is the last can begin to come
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
    """What a request for an expert would meet if it came now."""

    residency: str
    predicted_wait_seconds: float
    failure: str | None
    returns_seconds: float | None = None  # of one that has failed: until a request may be let in again


class Waits:
    """`overview` knows where every expert is now, `clock` gives seconds."""

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
        self._widest = 1  # leases that one request has taken so far
        self._steady: dict[str, tuple[Expected, Outlook]] = {}  # where time alone changes nothing

    def saw(self, leases: int) -> None:
        """A request takes that many leases."""
        self._widest = max(self._widest, leases)

    def outlooks(self) -> Outlooks:
        """Each expert by name, as things are now: to be read before the next await."""
        return Outlooks(self._slots, self._overview, self._clock(), self._steady)

    def predicted_seconds(self, name: str) -> float:
        """Until a request that came now would be granted a lease, as the queues are now."""
        return self.outlooks()[self._slots[name].name].predicted_wait_seconds

    def bound_seconds(self) -> float:
        """The longest wait, with the costs measured and the fan-outs seen so far."""
        return self._bound(self._limits, self._widest)

    def bounds_seconds(self) -> dict[str, float]:
        """The same for each local expert: that of its group."""
        bounds = {
            name: wait_bound_seconds(replace(self._limits, max_concurrency=slot.places), 0, 0.0, self._widest)
            for name, slot in self._slots.items()
            if not slot.expert.remote
        }
        for group in self.groups:
            bounds |= dict.fromkeys(group.experts, self.bound_of(group))
        return bounds

    def bound_of(self, group: Group, limits: Limits | None = None, widest: int | None = None) -> float:
        """The longest wait for an expert of this group.

        The expert with the fewest leases at a time has the longest turn. `limits`: default the server's; `widest`:
        the most leases of one request, default the most so far.
        """
        places = min((self._slots[name].places for name in group.experts), default=self._limits.max_concurrency)
        limits = replace(limits or self._limits, max_concurrency=places)
        return group.bound_seconds(limits, self._widest if widest is None else widest)

    def widest_bound_seconds(self) -> float:
        """The same once a request has asked for as many answers as one may."""
        return self._bound(self._limits, self._limits.max_fan_out)

    def usual_bound_seconds(self) -> float:
        """The same if every answer took as long as those measured so far (guessed before): what full queues cost."""
        seconds = min(self.usual_answer_seconds, self._limits.max_generation_seconds)
        return self._bound(replace(self._limits, max_generation_seconds=seconds), self._widest)

    @property
    def usual_answer_seconds(self) -> float:
        """Of the slowest expert, as measured; a guess before."""
        return max((slot.costs.service for slot in self._slots.values()), default=0.0)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The experts that may have to make room for one another, with the costs measured so far; the group with the
        longest wait first."""
        host_left = self._ledger.capacity.host - sum(slot.engine.footprint.host for slot in self._slots.values())
        found = groups_of([_sharer(slot) for slot in self._sharers], host_left)
        return tuple(sorted(found, key=lambda group: -self.bound_of(group, widest=1)))

    @property
    def costs_are_measured(self) -> bool:
        """Whether none of the moves in the bound is guessed."""
        return all(slot.costs.moves_are_measured for slot in self._sharers)

    @property
    def _sharers(self) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.pin is not Tier.DEVICE and not slot.expert.remote]

    @property
    def fewest_places(self) -> int:
        """Leases at a time of the expert that has the longest turn: fewer of them never make it shorter."""
        return min((slot.places for slot in self._slots.values()), default=self._limits.max_concurrency)

    def _bound(self, limits: Limits, widest: int) -> float:
        return max(self.bound_of(group, limits, widest) for group in self.groups or (Group(),))


class Outlooks(Mapping[str, Outlook]):
    """Each expert's outlook at one moment, worked out when it is asked for.

    `steady`: outlooks from earlier, each with what was expected then; one is the same while that is the same.
    """

    def __init__(
        self, slots: Mapping[str, Slot], overview: Overview, now: float, steady: dict[str, tuple[Expected, Outlook]]
    ) -> None:
        self._slots = slots
        self._overview = overview
        self._now = now
        self._steady = steady
        self._forecast: Forecast | None = None  # the same for all experts; not needed while all are at hand

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
        """Until a request that came now would be granted a lease."""
        serving = expected.left_to_serve(self._now)
        return serving if expected.at_hand else serving + self._until_up(name, expected)

    def _until_up(self, name: str, expected: Expected) -> float:
        """Seconds until it is on the device and admits new requests."""
        forecast = self._forecast = self._forecast or self._overview.forecast(self._now)
        turn = forecast.until.get(name)
        if turn is not None:
            return turn
        if expected.on_its_way:
            return self._overview.seconds_left(name, self._now)
        return (forecast.start_after_all if expected.from_disk else forecast.wake_after_all) + expected.up_seconds

    def _absence(self, name: str, failure: str | None) -> tuple[str | None, float | None]:
        """Why no request is let in now, and for how long; (None, None) for most."""
        slot = self._slots[name]
        if slot.backoff.since is not None:
            refusal = slot.backoff.refusal(self._now)
            return refusal, None if refusal is None else slot.backoff.seconds_left(self._now)
        return failure, None if slot.failure is None else max(0.0, slot.failure.until - self._now)


def _sharer(slot: Slot) -> Sharer:
    """One with several seats may have to stop before it comes: it can start anew on another seat."""
    up, down = slot.costs.slowest_way_up, slot.costs.slowest_way_down
    stop = down if len(slot.expert.seats) > 1 else 0.0
    return Sharer(slot.engine.footprint, up + stop, down, slot.expert.width, slot.name, slot.seats)
