"""Pure: what is worth moving before anybody asks for it. No clock, no I/O; values in, a plan out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

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
    """An expert, how likely it is to be asked for next, and what its moves take."""

    holding: Holding
    chance: float
    up_seconds: float  # from where it is to the device; from where it would rest, if it is there
    down_seconds: float  # from the device to where it would rest
    may_come: bool = True  # on a guess

    @property
    def need(self) -> Bytes:
        """What must be free for it to come, or becomes free when it leaves."""
        holding = self.holding
        awake = bytes_in(holding.footprint, Tier.DEVICE)
        return awake - (bytes_in(holding.footprint, self.rest) if holding.tier is Tier.DEVICE else holding.held)

    @property
    def rest(self) -> Tier:
        return Tier.HOST if self.holding.footprint.can_sleep else Tier.DISK


def prefetch(prospects: Sequence[Prospect], free: Bytes) -> Plan | None:
    """The moves that save the next request the most seconds, if they are worth it: nobody waits now.

    Somebody idle leaves, so that whoever is asked for next need not wait for that; somebody likely comes, if there is
    room; or both. Each time the seconds that the next request waits on average fall, so this comes to an end.
    """
    stage = _Stage(prospects, free)
    options = [
        option for option in stage.options() if option.gain > max(LEAST_GAIN * option.stake, _LEAST_GAIN_SECONDS)
    ]
    return max(options, key=lambda option: option.gain).plan if options else None


@dataclass(frozen=True, slots=True)
class _Option:
    gain: float  # seconds that the next request waits less on average
    stake: float  # seconds of the moves, weighed with the chance that the next request is for somebody they concern
    plan: Plan


class _Stage:
    """Who is on the device and who is away, and what the next request would have to wait for."""

    def __init__(self, prospects: Sequence[Prospect], free: Bytes) -> None:
        here = [one for one in prospects if one.holding.tier is Tier.DEVICE]
        away = [one for one in prospects if one.holding.tier is not Tier.DEVICE]
        self._away = sorted(away, key=lambda one: (-one.chance * one.up_seconds, one.holding.name))
        self._idle = [one for one in here if not one.holding.busy and one.rest.depth <= one.holding.pin.depth]
        self._leave_seconds = min((one.down_seconds for one in prospects), default=0.0)
        self._free = free
        self._waits = self._expected(self._away, free)

    def options(self) -> Iterator[_Option]:
        for one in self._idle:
            yield self._option(one, None)
        for one in [one for one in self._away if one.may_come][:_MOST_LIKELY]:
            if one.need.fits(self._free):
                yield self._option(None, one)
                continue
            for other in self._idle:
                if one.need.fits(self._free + other.need):
                    yield self._option(other, one)

    def _option(self, leaves: Prospect | None, comes: Prospect | None) -> _Option:
        away, free = [one for one in self._away if one is not comes], self._free
        chance = sum(one.chance for one in self._away)
        seconds, moves = 0.0, []
        if leaves is not None:
            away, free, chance = [*away, leaves], free + leaves.need, chance + leaves.chance
            seconds, moves = leaves.down_seconds, [_leave(leaves)]
        if comes is not None:
            free, seconds, moves = free - comes.need, seconds + comes.up_seconds, [*moves, _come(comes)]
        return _Option(self._waits - self._expected(away, free), seconds * chance, Plan(tuple(moves)))

    def _expected(self, away: Iterable[Prospect], free: Bytes) -> float:
        """Seconds the next request waits on average: a move up, before it somebody's leaving where there is no room."""
        return sum(
            one.chance * (one.up_seconds + (0.0 if one.need.fits(free) else self._leave_seconds)) for one in away
        )


def _leave(one: Prospect) -> Move:
    return Move(one.holding.name, Tier.DEVICE, one.rest)


def _come(one: Prospect) -> Move:
    return Move(one.holding.name, one.holding.tier, Tier.DEVICE)
