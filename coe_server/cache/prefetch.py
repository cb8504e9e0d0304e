"""Pure: what is worth moving before anybody asks for it. No clock, no I/O; values in, a plan out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import chain

from coe_server.cache.planner import Move, Plan
from coe_server.cache.standing import Holding
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


def prefetch(
    here: Iterable[Prospect], away: Mapping[str, Prospect], chances: Mapping[str, float], free: Bytes
) -> Plan | None:
    """The moves that save the next request the most seconds, if they are worth it: nobody waits now.

    Somebody idle leaves, so that whoever is asked for next need not wait for that; somebody likely comes, if there is
    room; or both. Each time the seconds that the next request waits on average fall, so this comes to an end.
    `here`: who is on the device; `away`: everybody else, by name.
    """
    likely = {name: chance for name, chance in chances.items() if chance >= LEAST_CHANCE and name in away}
    stage = _Stage(tuple(here), [away[name] for name in likely], chances, free)
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

    def __init__(
        self, here: Sequence[Prospect], away: Sequence[Prospect], chances: Mapping[str, float], free: Bytes
    ) -> None:
        self._chances = chances
        self._free = free
        self._idle = [one for one in here if one.may_leave]
        self._leave_seconds = min((one.down_seconds for one in chain(here, away)), default=0.0)
        self._away_chance = sum(chances[one.holding.name] for one in away)
        self._by_need: dict[Bytes, float] = {}  # chance that the next one is away and needs this
        for one in away:
            self._by_need[one.need] = self._by_need.get(one.need, 0.0) + chances[one.holding.name]
        self._late_now = self._late(free)
        self._likeliest = nsmallest(_MOST_LIKELY, (one for one in away if one.may_come), key=self._least_to_gain)

    def options(self) -> Iterator[_Option]:
        """Only those that can be worth it, whatever else they change."""
        for leaves, comes in self._pairs():
            if self._hope(leaves, comes) > _LEAST_GAIN_SECONDS:
                yield self._option(leaves, comes)

    def _pairs(self) -> Iterator[tuple[Prospect | None, Prospect | None]]:
        """Who leaves and who comes."""
        for one in self._idle:
            yield one, None
        for one in self._likeliest:
            if one.need.fits(self._free):
                yield None, one
                continue
            for other in self._idle:
                if one.need.fits(self._free + other.need):
                    yield other, one

    def _hope(self, leaves: Prospect | None, comes: Prospect | None) -> float:
        """Seconds that the next request would wait less if from now on there were room for everybody."""
        return self._late_now * self._leave_seconds + self._seconds_of(comes) - self._seconds_of(leaves)

    def _option(self, leaves: Prospect | None, comes: Prospect | None) -> _Option:
        free, late, seconds, concerned = self._free, 0.0, 0.0, self._away_chance
        if leaves is not None:
            free += leaves.need
            seconds += leaves.down_seconds
            concerned += self._chances[leaves.holding.name]
        if comes is not None:
            free -= comes.need
            seconds += comes.up_seconds
            late -= 0.0 if comes.need.fits(free) else self._chances[comes.holding.name]
        if leaves is not None and not leaves.need.fits(free):
            late += self._chances[leaves.holding.name]
        gain = self._hope(leaves, comes) - (late + self._late(free)) * self._leave_seconds
        return _Option(leaves, comes, gain, seconds * concerned)

    def _late(self, free: Bytes) -> float:
        """The chance that the next request is for somebody away for whom there is no room."""
        return sum(chance for need, chance in self._by_need.items() if not need.fits(free))

    def _seconds_of(self, one: Prospect | None) -> float:
        """That the next request waits for its move up, on average."""
        return 0.0 if one is None else self._chances[one.holding.name] * one.up_seconds

    def _least_to_gain(self, one: Prospect) -> tuple[float, str]:
        return -self._seconds_of(one), one.holding.name
