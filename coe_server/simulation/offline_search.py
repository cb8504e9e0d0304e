"""Pure: the fewest blocked seconds of any schedule of a short trace, found by search.

Exact over all schedules that act (admit a request, begin a start, wake, sleep or stop) only at events: a request
arrives, an answer ends or a move ends. A schedule knows the trace; it may let a request wait although it could be
admitted, and may load experts before they are requested. Every policy of this server acts only at such events, unless
`ttl_seconds` or `min_tenure_seconds` are set, so no policy is better than the optimum. The optimum is at least
`offline_bound.lower_bound`, which holds for every schedule.

Best-first search. A state has the experts' tiers, running answers and waiting requests. Its cost is the blocked time
so far plus the lower bound of the rest. The first finished state taken from the queue has the lowest cost.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from coe_server.cache.tiers import Bytes, Tier, bytes_in
from coe_server.engines.engine import Footprint
from coe_server.simulation.offline_bound import Bringing, Job, lower_bound


@dataclass(frozen=True, slots=True)
class Player:
    """An expert of the search: first tier, footprint and move durations."""

    footprint: Footprint
    tier: Tier
    pin: Tier
    start_seconds: float
    wake_seconds: float
    sleep_seconds: float
    stop_seconds: float
    places: int  # answers inside at a time

    def seconds(self, source: Tier, target: Tier) -> float:
        if source is Tier.DISK:
            return self.start_seconds
        if target is Tier.DEVICE:
            return self.wake_seconds
        return self.sleep_seconds if target is Tier.HOST else self.stop_seconds


@dataclass(frozen=True, slots=True)
class Board:
    """The constants of a search."""

    jobs: tuple[Job, ...]  # in order of arrival
    players: dict[str, Player]  # only requested experts
    capacity: Bytes
    wait_limit_seconds: float


@dataclass(frozen=True, slots=True)
class _Spot:
    """An expert's tier, or the target and end of its move.

    `unused_from`: the tier that it left without having served a request since. Going back there is pruned, since it
    could have stayed.
    """

    tier: Tier
    source: Tier | None = None
    until: float = 0.0
    unused_from: Tier | None = None

    def at(self, now: float) -> _Spot:
        if self.source is None or self.until > now + _TICK:
            return self
        return _Spot(self.tier, unused_from=self.source if self.tier is Tier.DEVICE else None)


@dataclass(frozen=True, slots=True)
class _State:
    now: float
    arrived: int  # number of jobs
    waiting: frozenset[int]
    running: tuple[tuple[float, int], ...]  # (end, job), sorted
    spots: tuple[_Spot, ...]  # in the order of board.players
    rank: int = 0  # simultaneous steps are taken in one order, so that each set is visited once

    def key(self, all_arrived: bool) -> tuple[object, ...]:
        """States with equal keys have equal futures. Once all requests have arrived, absolute time is irrelevant."""
        zero = self.now if all_arrived else 0.0
        running = tuple((round(end - zero, 6), job) for end, job in self.running)
        spots = tuple(
            (s.tier, s.source, round(s.until - zero, 6) if s.source is not None else 0.0, s.unused_from)
            for s in self.spots
        )
        return (0.0 if all_arrived else round(self.now, 6), self.arrived, self.waiting, running, spots, self.rank)


def fewest_blocked_seconds(board: Board, reached: float, most_states: int = 60_000) -> float | None:
    """The optimum, at most `reached` (the cost of a known schedule); None if the search exceeds `most_states`."""
    return _Search(board).run(reached, most_states)


class _Search:
    def __init__(self, board: Board) -> None:
        self._board = board
        self._rules = _Rules(board)
        self._bounds: dict[tuple[object, ...], float] = {}  # by the experts' tiers, independent of the last step
        spent = sum(job.seconds for job in board.jobs) + sum(
            p.start_seconds + p.wake_seconds + p.sleep_seconds + p.stop_seconds for p in self._rules.players
        ) * len(board.jobs)
        latest = board.jobs[-1].arrived + spent
        self._limited = latest > board.jobs[0].arrived + board.wait_limit_seconds

    def run(self, reached: float, most_states: int) -> float | None:
        ticket = count()
        first = self._settle(_State(0.0, 0, frozenset(), (), tuple(_Spot(p.tier) for p in self._rules.players)))
        heap = [(self._still_blocked(first), next(ticket), 0.0, first)]
        best: dict[tuple[object, ...], float] = {}
        while heap:
            price, _, blocked, state = heapq.heappop(heap)
            if price >= reached - _TICK:
                return reached
            if state.arrived == len(self._board.jobs) and not state.waiting:
                return blocked  # running answers end without blocking a request
            key = self._key(state)
            if best.get(key, _NEVER) <= blocked:
                continue
            best[key] = blocked
            if len(best) > most_states:
                return None
            for cost, successor in self._successors(state):
                total = blocked + cost
                if best.get(self._key(successor), _NEVER) > total:
                    heapq.heappush(heap, (total + self._still_blocked(successor), -next(ticket), total, successor))
        return reached

    def _key(self, state: _State) -> tuple[object, ...]:
        return state.key(state.arrived == len(self._board.jobs) and not self._limited)

    def _successors(self, state: _State) -> Iterator[tuple[float, _State]]:
        """Of equal states the last one yielded is visited first: the one that admits a request."""
        later = self._pass_time(state)
        if later is not None:
            none_is_generating = bool(state.waiting) and not state.running
            yield (later.now - state.now if none_is_generating else 0.0), later
        yield from ((0.0, step) for step in self._steps(state))

    def _pass_time(self, state: _State) -> _State | None:
        """Advance to the next event."""
        moments = [end for end, _ in state.running[:1]]
        moments += [spot.until for spot in state.spots if spot.source is not None]
        if state.arrived < len(self._board.jobs):
            moments.append(self._board.jobs[state.arrived].arrived)
        if not moments:
            return None
        later = self._settle(replace(state, now=min(moments), rank=0))
        limit = self._board.wait_limit_seconds
        late = self._limited and any(later.now > self._board.jobs[j].arrived + limit + _TICK for j in later.waiting)
        return None if late else later

    def _settle(self, state: _State) -> _State:
        """Apply arrivals and ends up to now; an expert that is no longer needed is unloaded at once."""
        arrived, now = state.arrived, state.now
        while arrived < len(self._board.jobs) and self._board.jobs[arrived].arrived <= now + _TICK:
            arrived += 1
        waiting = state.waiting | frozenset(range(state.arrived, arrived))
        running = tuple(pair for pair in state.running if pair[0] > now + _TICK)
        spots = tuple(spot.at(now) for spot in state.spots)
        settled = _State(now, arrived, waiting, running, spots)
        for index, player in enumerate(self._rules.players):
            at_once = player.stop_seconds <= player.sleep_seconds or not player.footprint.can_sleep
            if at_once and not self._rules.needed(settled, index) and self._rules.may(settled, index, Tier.DISK):
                settled = self._rules.move(settled, index, Tier.DISK, 0)
        return settled

    def _steps(self, state: _State) -> Iterator[_State]:
        """Every possible step now with a rank above `state.rank`."""
        size = len(self._rules.players)
        targets = (Tier.DISK, Tier.HOST, Tier.DEVICE) if self._rules.crowded(state) else (Tier.DEVICE,)
        for target in targets:
            order = 2 - target.depth  # steps that free memory come before those that need it
            for index in range(size):
                rank = 1 + order * size + index
                useful = target is not Tier.DEVICE or self._rules.needed(state, index)
                if rank > state.rank and useful and self._rules.may(state, index, target):
                    yield self._rules.move(state, index, target, rank)
        seen: set[tuple[int, float]] = set()
        for job in sorted(state.waiting):
            rank = 1 + 3 * size + job
            index, seconds = self._rules.owner[job], self._board.jobs[job].seconds
            if (index, seconds) in seen or not self._rules.lets_in(state, index):
                continue  # of equal requests the oldest is admitted first
            seen.add((index, seconds))
            if rank > state.rank:
                running = tuple(sorted((*state.running, (state.now + seconds, job))))
                spots = (*state.spots[:index], _Spot(Tier.DEVICE), *state.spots[index + 1 :])
                yield replace(state, waiting=state.waiting - {job}, running=running, spots=spots, rank=rank)

    def _still_blocked(self, state: _State) -> float:
        """Lower bound on the blocked seconds from here on."""
        key = self._key(replace(state, rank=0))
        if key not in self._bounds:
            self._bounds[key] = self._bound(state)
        return self._bounds[key]

    def _bound(self, state: _State) -> float:
        left = [self._board.jobs[job] for job in sorted((*state.waiting, *range(state.arrived, len(self._board.jobs))))]
        jobs = [Job(max(0.0, job.arrived - state.now), job.expert, job.seconds) for job in left]
        bringing = {
            name: Bringing(
                _until_up(player, spot, state.now), Tier.DISK in (spot.tier, spot.source), player.footprint.device_awake
            )
            for (name, player), spot in zip(self._board.players.items(), state.spots, strict=True)
        }
        running = state.running[-1][0] - state.now if state.running else 0.0
        return lower_bound(jobs, bringing, self._board.capacity.device, running)


class _Rules:
    """The steps allowed in a state, and their results."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.players = list(board.players.values())
        names = list(board.players)
        self.owner = [names.index(job.expert) for job in board.jobs]

    def crowded(self, state: _State) -> bool:
        """True if the experts needed or present do not all fit on the device; otherwise no eviction is needed."""
        here = (
            bytes_in(player.footprint, Tier.DEVICE)
            for index, player in enumerate(self.players)
            if self.needed(state, index) or state.spots[index] != _Spot(Tier.DISK)
        )
        return not sum(here, Bytes()).fits(self._board.capacity)

    def lets_in(self, state: _State, index: int) -> bool:
        spot = state.spots[index]
        inside = sum(self.owner[job] == index for _, job in state.running)
        return spot.tier is Tier.DEVICE and spot.source is None and inside < self.players[index].places

    def needed(self, state: _State, index: int) -> bool:
        """True if a request for it has not been admitted or has not arrived."""
        return any(self.owner[job] == index for job in state.waiting) or index in self.owner[state.arrived :]

    def may(self, state: _State, index: int, target: Tier) -> bool:
        spot, player = state.spots[index], self.players[index]
        if spot.source is not None or spot.tier is target or target.depth > player.pin.depth:
            return False
        if target is Tier.DEVICE:
            return self._may_come(state, index)
        leased = any(self.owner[job] == index for _, job in state.running)
        back_unused = spot.unused_from is not None and target.depth >= spot.unused_from.depth
        sleeps = spot.tier is Tier.DEVICE and player.footprint.can_sleep
        return not leased and not back_unused and (target is Tier.DISK or sleeps)

    def _may_come(self, state: _State, index: int) -> bool:
        player = self.players[index]
        starting = any(s.source is Tier.DISK for s in state.spots)  # engines start one at a time
        if state.spots[index].tier is Tier.DISK and starting:
            return False
        others = (self._held(i, s) for i, s in enumerate(state.spots) if i != index)
        return sum(others, bytes_in(player.footprint, Tier.DEVICE)).fits(self._board.capacity)

    def _held(self, index: int, spot: _Spot) -> Bytes:
        """The bytes held; during a move the larger of both tiers."""
        footprint = self.players[index].footprint
        held = bytes_in(footprint, spot.tier)
        return held if spot.source is None else held.at_least(bytes_in(footprint, spot.source))

    def move(self, state: _State, index: int, target: Tier, rank: int) -> _State:
        source = state.spots[index].tier
        until = state.now + self.players[index].seconds(source, target)
        spot = _Spot(target, source, until).at(state.now)
        return replace(state, spots=(*state.spots[:index], spot, *state.spots[index + 1 :]), rank=rank)


def _until_up(player: Player, spot: _Spot, now: float) -> float:
    """Least seconds until the expert is on the device."""
    if spot.source is None:
        return 0.0 if spot.tier is Tier.DEVICE else player.seconds(spot.tier, Tier.DEVICE)
    moving = spot.until - now
    return moving if spot.tier is Tier.DEVICE else moving + player.seconds(spot.tier, Tier.DEVICE)


_NEVER = float("inf")
_TICK = 1e-7  # seconds; closer events are simultaneous
