"""Pure: what is worth moving before anybody asks for it. No clock, no I/O; values in, a plan out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from math import inf

from coe_server.cache.planner import Holding, Move, Plan
from coe_server.cache.tiers import Bytes, Tier, bytes_in

LEAST_CHANCE = 0.005  # who is less likely to be asked for next is left out of account
LEAST_CHANCE_TO_READ = 0.05  # of being asked for next, for its weight files to be worth reading
LEAST_DEMAND_TO_READ = 0.25  # of one request just now: nobody's files are read over and over who is not asked for
LEAST_GAIN = 0.1  # of the seconds that the moves take: for less than that nothing is moved
_LEAST_GAIN_SECONDS = 0.001  # nobody notices less, and measured costs are no more exact
_MOST_LIKELY = 3  # only the first few are worth bringing


@dataclass(frozen=True, slots=True)
class Prospect:
    """An expert that may come or leave on a guess, and what its moves take."""

    holding: Holding
    up_seconds: float  # from where it is to the device; from where it would rest, if it is there
    down_seconds: float  # from the device to where it would rest
    may_come: bool = True  # on a guess
    need: Bytes = field(init=False)  # what must be free for it to come, or becomes free when it leaves

    def __post_init__(self) -> None:
        holding = self.holding
        rests = self.rest if holding.tier is Tier.DEVICE else holding.tier
        need = bytes_in(holding.footprint, Tier.DEVICE) - bytes_in(holding.footprint, rests)
        object.__setattr__(self, "need", need)

    @property
    def rest(self) -> Tier:
        return Tier.HOST if self.holding.footprint.can_sleep else Tier.DISK

    @property
    def may_leave(self) -> bool:
        return not self.holding.busy and self.rest.depth <= self.holding.pin.depth


def prefetch(prospects: Iterable[Prospect], chances: Mapping[str, float], free: Bytes) -> Plan | None:
    """The moves that save the next request the most seconds, if they are worth it: nobody waits now.

    Somebody idle leaves, so that whoever is asked for next need not wait for that; somebody likely comes, if there is
    room; or both. Each time the seconds that the next request waits on average fall, so this comes to an end.
    """
    stage = _Stage(prospects, chances, free)
    options = [
        option for option in stage.options() if option.gain > max(LEAST_GAIN * option.stake, _LEAST_GAIN_SECONDS)
    ]
    return max(options, key=lambda option: option.gain).plan() if options else None


@dataclass(frozen=True, slots=True)
class _Option:
    leaves: Prospect | None
    comes: Prospect | None
    gain: float  # seconds that the next request waits less on average
    stake: float  # seconds of the moves, weighed with the chance that the next request is for somebody they concern

    def plan(self) -> Plan:
        moves = []
        if self.leaves is not None:
            moves.append(Move(self.leaves.holding.name, Tier.DEVICE, self.leaves.rest))
        if self.comes is not None:
            moves.append(Move(self.comes.holding.name, self.comes.holding.tier, Tier.DEVICE))
        return Plan(tuple(moves))


class _Stage:
    """Who is on the device and who is away, and what the next request would have to wait for.

    That is a move up, and before it somebody's leaving, where there is no room. Of those who are away only the sums
    matter, but for the few that may come.
    """

    def __init__(self, prospects: Iterable[Prospect], chances: Mapping[str, float], free: Bytes) -> None:
        self._chances = chances
        self._free = free
        self._leave_seconds = inf
        self._away_chance = 0.0
        self._idle: list[Prospect] = []
        self._by_need: defaultdict[Bytes, float] = defaultdict(float)  # chance that the next one is away and needs this
        may_come: list[tuple[float, str, Prospect]] = []
        for one in prospects:
            name, chance = one.holding.name, chances[one.holding.name]
            away = one.holding.tier is not Tier.DEVICE
            if away and chance < LEAST_CHANCE:
                continue
            self._leave_seconds = min(self._leave_seconds, one.down_seconds)
            if away:
                self._away_chance += chance
                self._by_need[one.need] += chance
                if one.may_come:
                    may_come.append((-chance * one.up_seconds, name, one))
            elif one.may_leave:
                self._idle.append(one)
        self._likeliest = [one for _, _, one in nsmallest(_MOST_LIKELY, may_come)]

    def options(self) -> Iterator[_Option]:
        for one in self._idle:
            yield self._option(one, None)
        for one in self._likeliest:
            if one.need.fits(self._free):
                yield self._option(None, one)
                continue
            for other in self._idle:
                if one.need.fits(self._free + other.need):
                    yield self._option(other, one)

    def _option(self, leaves: Prospect | None, comes: Prospect | None) -> _Option:
        free, late = self._free, 0.0
        gain, seconds, concerned = self._late(free) * self._leave_seconds, 0.0, self._away_chance
        if leaves is not None:
            chance = self._chances[leaves.holding.name]
            free += leaves.need
            gain, seconds, concerned = gain - chance * leaves.up_seconds, leaves.down_seconds, concerned + chance
        if comes is not None:
            chance = self._chances[comes.holding.name]
            free -= comes.need
            gain, seconds = gain + chance * comes.up_seconds, seconds + comes.up_seconds
            late -= 0.0 if comes.need.fits(free) else chance
        if leaves is not None and not leaves.need.fits(free):
            late += self._chances[leaves.holding.name]
        return _Option(leaves, comes, gain - (late + self._late(free)) * self._leave_seconds, seconds * concerned)

    def _late(self, free: Bytes) -> float:
        """The chance that the next request is for somebody away for whom there is no room."""
        return sum(chance for need, chance in self._by_need.items() if not need.fits(free))
