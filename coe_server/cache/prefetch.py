"""Pure: moves that shorten the next switch while no request waits. `demand` predicts the next request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from heapq import nsmallest
from itertools import chain
from typing import NamedTuple

from coe_server.cache.evictions import Move
from coe_server.cache.planner import Plan
from coe_server.cache.tiers import Bytes, Holding, Tier, bytes_in, idle_tier
from coe_server.engines.engine import Seat

LEAST_CHANCE = 0.005  # of those off the device; less likely experts are ignored
LEAST_GAIN = 0.1  # of the seconds that the moves take; a smaller gain is not worth a move
_LEAST_GAIN_SECONDS = 0.001  # precision of measured costs
_MOST_LIKELY = 3  # candidates considered for prefetching


class Guess(StrEnum):
    """The kinds of prefetching, and when each is useful."""

    DEVICE = "device"  # an expert was loaded; useful if it is requested before it is evicted
    ROOM = "room"  # an idle expert was evicted; useful if another one is loaded before it is requested again


class Guesses:
    """Counts prefetches. Each is open until it is known to be useful or wasted."""

    def __init__(self) -> None:
        self.begun: Counter[Guess] = Counter()
        self.useful: Counter[Guess] = Counter()
        self.wasted: Counter[Guess] = Counter()
        self.open: dict[Guess, set[str]] = {guess: set() for guess in Guess}  # experts

    def begin(self, guess: Guess, expert: str) -> None:
        self.begun[guess] += 1
        self.open[guess].add(expert)

    def end(self, guess: Guess, expert: str, outcome: Counter[Guess]) -> None:
        """Count the outcome, `useful` or `wasted`, if such a prefetch is open."""
        if expert in self.open[guess]:
            self.open[guess].discard(expert)
            outcome[guess] += 1


Needs = tuple[tuple[Seat, Bytes], ...]  # seat -> memory that an expert needs there, or frees there


@lru_cache(maxsize=4096)
def _one_object(needs: Needs) -> Needs:
    return needs


@dataclass(frozen=True, slots=True)
class Prospect:
    """An expert that may be prefetched or evicted, and the seconds of its moves."""

    holding: Holding
    up_seconds: float  # to the device, from its tier or, if it is on the device, from its idle tier
    down_seconds: float  # from the device to its idle tier
    may_come: bool = True  # may be prefetched
    needs: Needs = field(init=False)  # equal ones are one object

    def __post_init__(self) -> None:
        footprint, tier = self.holding.footprint, self.holding.tier
        lower = self.rest if tier is Tier.DEVICE else tier
        needs = tuple(
            (seat, bytes_in(footprint, Tier.DEVICE, seat) - bytes_in(footprint, lower, seat))
            for seat in self.holding.may_come_to
        )
        object.__setattr__(self, "needs", _one_object(needs))

    @property
    def frees(self) -> Bytes:
        """What becomes free when it leaves the device."""
        return self.needs[0][1]

    @property
    def rest(self) -> Tier:
        return idle_tier(self.holding.footprint)

    @property
    def may_leave(self) -> bool:
        return not self.holding.busy and self.rest.depth <= self.holding.pin.depth


def prefetch(
    here: Iterable[Prospect], away: Mapping[str, Prospect], chances: Mapping[str, float], free: Bytes
) -> Plan | None:
    """The moves that shorten the next request's expected wait most; None if no moves are worth their cost.

    An idle expert is evicted, so that the next request need not wait for that; or a likely expert is loaded, if it
    fits; or both. Every call reduces the expected wait, so that repeated calls end. `here`: the experts on the device;
    `away`: all others, by name; `free`: what experts may still take.
    """
    least = LEAST_CHANCE * sum(chances[name] for name in away)
    stage = _Stage(tuple(here), [one for name, one in away.items() if chances[name] >= least], chances, free)
    best, most = None, 0.0
    for leaves, comes in stage.pairs():
        gain, stake = stage.gain(leaves, comes)
        if gain > max(most, LEAST_GAIN * stake, _LEAST_GAIN_SECONDS):
            best, most = (leaves, comes), gain
    return None if best is None else _plan(*best, free)


class _Stage:
    """The experts on and off the device, and the next request's expected wait.

    It waits for a move up and, if there is no free memory, for the move down of another expert before it.
    """

    def __init__(
        self, here: tuple[Prospect, ...], away: list[Prospect], chances: Mapping[str, float], free: Bytes
    ) -> None:
        self._chances = chances
        self._free = free
        self._idle = [one for one in here if one.may_leave]
        self._likeliest = nsmallest(_MOST_LIKELY, (one for one in away if one.may_come), key=self._rank)
        self._leave_seconds = min((one.down_seconds for one in chain(here, away)), default=0.0)
        by_need: dict[int, tuple[Needs, float]] = {}  # what experts off the device need, and the chance of one of them
        for one in away:
            chance = by_need[id(one.needs)][1] if id(one.needs) in by_need else 0.0
            by_need[id(one.needs)] = one.needs, chance + chances[one.holding.name]
        self._by_need = tuple(by_need.values())
        self._all_away = sum(chance for _, chance in self._by_need)
        self._late_now = self._late(free)
        self._outcomes: dict[tuple[int, int], _Outcome | None] = {}

    def pairs(self) -> Iterator[tuple[Prospect | None, Prospect | None]]:
        """Pairs of an expert to evict and an expert to load; either may be missing."""
        yield from ((one, None) for one in self._idle)
        for one in self._likeliest:
            if self._outcome(None, one) is not None:
                yield None, one
            else:
                yield from ((other, one) for other in self._idle if self._outcome(other, one) is not None)

    def gain(self, leaves: Prospect | None, comes: Prospect | None) -> tuple[float, float]:
        """The next request's expected saving in seconds, and the weighted seconds of the moves.

        The weight is the chance of a request for an expert that is off the device or is evicted.
        """
        after, concerned = self._outcome(leaves, comes), self._all_away
        assert after is not None, "a pair has room"
        saved, moving, late = 0.0, 0.0, self._late_now
        if leaves is not None:
            saved -= self._seconds(leaves)
            moving += leaves.down_seconds
            concerned += self._chances[leaves.holding.name]
        if comes is not None:
            saved += self._seconds(comes)
            moving += comes.up_seconds
            late += 0.0 if after.fits_twice else self._chances[comes.holding.name]  # it needs no eviction
        if leaves is not None and not after.fits_again:
            late -= self._chances[leaves.holding.name]
        return saved + (late - after.late) * self._leave_seconds, moving * concerned

    def _outcome(self, leaves: Prospect | None, comes: Prospect | None) -> _Outcome | None:
        """Once these moves are made; None if there is no room for them. It depends on what the two need alone."""
        key = 0 if leaves is None else id(leaves.needs), 0 if comes is None else id(comes.needs)
        if key not in self._outcomes:
            self._outcomes[key] = self._make_outcome(leaves, comes)
        return self._outcomes[key]

    def _make_outcome(self, leaves: Prospect | None, comes: Prospect | None) -> _Outcome | None:
        free = self._free if leaves is None else self._free + leaves.frees
        fits_twice = False
        if comes is not None:
            place = tightest(comes.needs, free)
            if place is None:
                return None
            free -= place[1]
            fits_twice = tightest(comes.needs, free) is not None
        return _Outcome(self._late(free), fits_twice, leaves is not None and tightest(leaves.needs, free) is not None)

    def _late(self, free: Bytes) -> float:
        """The chance that the next request is for an expert off the device that does not fit."""
        return sum(chance for needs, chance in self._by_need if not any(need.fits(free) for _, need in needs))

    def _seconds(self, one: Prospect) -> float:
        """The next request's expected seconds of waiting for its move up."""
        return self._chances[one.holding.name] * one.up_seconds

    def _rank(self, one: Prospect) -> tuple[float, str]:
        return -self._seconds(one), one.holding.name


class _Outcome(NamedTuple):
    late: float  # the chance that the next request is for an expert off the device that does not fit
    fits_twice: bool  # there would be room for as much again as the expert that comes
    fits_again: bool  # the one that leaves could come back without an eviction


def tightest(needs: Needs, free: Bytes) -> tuple[Seat, Bytes] | None:
    """The seat with the least room among those with enough, and what is needed there."""
    fits = [place for place in needs if place[1].fits(free)]
    return min(fits, key=lambda place: sum(map(free.on, place[0]))) if len(fits) > 1 else next(iter(fits), None)


def _plan(leaves: Prospect | None, comes: Prospect | None, free: Bytes) -> Plan:
    moves = []
    if leaves is not None:
        moves.append(Move(leaves.holding.name, Tier.DEVICE, leaves.rest, leaves.holding.seat))
        free += leaves.frees
    if comes is not None and (place := tightest(comes.needs, free)) is not None:
        moves.append(Move(comes.holding.name, comes.holding.tier, Tier.DEVICE, place[0]))
    return Plan(tuple(moves))
