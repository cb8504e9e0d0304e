"""What is done before anybody asks for it: who comes or leaves on a guess, and whose weight files are read. One look at
the slots at a time; what is worth it is decided in `prefetch` and in the turns of the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coe_server.cache.demand import Demand
from coe_server.cache.guesses import Guess, Guesses
from coe_server.cache.lookahead import Lookahead, WeightReader
from coe_server.cache.mover import Mover
from coe_server.cache.overview import Overview
from coe_server.cache.planner import Plan
from coe_server.cache.policy import Policy
from coe_server.cache.prefetch import LEAST_CHANCE_TO_READ, LEAST_DEMAND_TO_READ, prefetch
from coe_server.cache.scheduler import Limits, Queue, turns
from coe_server.cache.slot import Slot
from coe_server.cache.succession import Succession
from coe_server.cache.tiers import Bytes, Tier
from coe_server.events import EventLog


class Foresight:
    """Uses the time in which nobody waits. `begin` starts a plan."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        overview: Overview,
        mover: Mover,
        events: EventLog,
        capacity: Bytes,
        limits: Limits,
        policy: Policy,
        clock: Callable[[], float],
        begin: Callable[[Plan], None],
        changed: Callable[[], None],
        reader: WeightReader | None,
    ) -> None:
        self.guesses = Guesses()
        self._slots = slots
        self._overview = overview
        self._mover = mover
        self._capacity = capacity
        self._limits = limits
        self._policy = policy
        self._clock = clock
        self._begin = begin
        self._demand = Demand(slots)
        self._succession = Succession()
        self._coming: Slot | None = None  # on a guess
        self._lookahead = None if reader is None else Lookahead(reader, self.guesses, events, clock, changed)

    def asked_for(self, name: str) -> None:
        """A request for this expert has come."""
        now = self._clock()
        self._demand.add(name, now)
        self._succession.note(name, now)
        self.guesses.wrong(Guess.ROOM, name)

    def comes(self, goal: Slot) -> None:
        """This expert is on its way to the device."""
        for name in self.guesses.open(Guess.ROOM):
            self.guesses.right(Guess.ROOM, name)
        if self._lookahead is not None and goal.tier is Tier.DISK:
            self._lookahead.starts(goal.name)

    def see_who_left_unasked(self) -> None:
        """Whoever came on a guess and has left again without a request came for nothing."""
        for name in self.guesses.open(Guess.DEVICE):
            if self._slots[name].moving is None and self._slots[name].tier is not Tier.DEVICE:
                self.guesses.wrong(Guess.DEVICE, name)

    def give_up_for_who_waits(self) -> None:
        """A start on a guess is given up once somebody waits for another expert; a wake is over at once."""
        if self._coming is not None and self._coming.moving is None:
            self._coming = None
        coming = self._coming
        if coming is not None and self._overview.anyone_waits and not coming.waiters and coming.tier is Tier.DISK:
            self._mover.give_up(coming)
            self._coming = None

    def move(self) -> None:
        """Make the next switch shorter, while nobody waits and nothing moves."""
        if not self._limits.prefetch or not self._overview.calm:
            return
        here, away = self._overview.prospects()
        way = prefetch(here.values(), away, self._chances(), self._unclaimed())
        if way is None:
            return
        goal, target = self._slots[way.moves[-1].expert], way.moves[-1].target
        self._begin(way)
        if target is Tier.DEVICE:
            self._coming = goal
            self.guesses.begin(Guess.DEVICE, goal.name)
        else:
            self.guesses.begin(Guess.ROOM, goal.name)
            goal.pushed_out = True  # it may come back on a guess, too

    def read(self, preloads: Sequence[str]) -> None:
        """Have the files read of whoever is likeliest to start next; `preloads` are still to be brought up."""
        if self._lookahead is not None and self._limits.prefetch:
            self._lookahead.read(self._whose_files(self._lookahead, preloads), self._unclaimed())

    def seconds_until_doubt(self, now: float) -> float | None:
        """Until it is worth another look although nothing has happened; None: not before something does."""
        if not self._limits.prefetch or not self._overview.calm:
            return None
        return self._succession.seconds_until_doubt(now)

    async def close(self) -> None:
        """Read no further; when this returns nobody does."""
        if self._lookahead is not None:
            await self._lookahead.close()

    def _whose_files(self, lookahead: Lookahead, preloads: Sequence[str]) -> str | None:
        """Of those who would have to start, the next whose turn it is, or while none waits or starts the one that is
        to be preloaded next or is likely to be asked for again."""
        if queues := self._overview.queued_on_disk():
            return self._next_in_turn(lookahead, queues)
        if preloads:
            return preloads[0] if not lookahead.has_read(preloads[0]) else None
        if not self._overview.calm:
            return None if self._overview.starting else lookahead.reading
        return self._likeliest(lookahead)

    def _next_in_turn(self, lookahead: Lookahead, queues: tuple[Queue, ...]) -> str | None:
        if any(queue.expert == lookahead.reading for queue in queues):
            return lookahead.reading
        unread = [queue for queue in queues if not lookahead.has_read(queue.expert)]
        order = turns(unread, self._clock(), self._limits.max_wait_seconds, self._policy)
        return next((turn.expert for turn in order), None)

    def _likeliest(self, lookahead: Lookahead) -> str | None:
        chances = self._chances()
        likely = [
            name
            for name, chance in chances.items()
            if chance >= LEAST_CHANCE_TO_READ and self._may_be_read(name) and not lookahead.has_read(name)
        ]
        if lookahead.reading in likely:
            return lookahead.reading
        return max(likely, key=lambda name: chances[name] * self._slots[name].switch_seconds(), default=None)

    def _may_be_read(self, name: str) -> bool:
        slot = self._slots[name]
        idle_on_disk = slot.tier is Tier.DISK and slot.moving is None and slot.failure is None
        return idle_on_disk and self._demand.of(name, self._clock()) >= LEAST_DEMAND_TO_READ

    def _chances(self) -> dict[str, float]:
        now = self._clock()
        return self._succession.chances(self._demand.lately(now), now)

    def _unclaimed(self) -> Bytes:
        """What experts may still take."""
        return self._capacity - self._overview.standing.used
