"""One move of one expert: reserves memory, calls the engine, keeps the ledger, measures."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from coe_server.cache.evictions import Move
from coe_server.cache.health import Failures
from coe_server.cache.slot import MoveRecord, Slot
from coe_server.cache.tiers import Bytes, Ledger, Tier, bytes_in, mib
from coe_server.engines.engine import Seat
from coe_server.errors import CardLost, EngineError, EngineStartFailed
from coe_server.events import EventLog

logger = logging.getLogger(__name__)


_Found = TypeVar("_Found")


class PlanIsStale(Exception):
    """The state that the plan assumed no longer holds. No engine has failed; a new plan is needed."""


class Moves:
    """Makes moves, several at a time where the ledger allows it. Engines start one at a time, with a timeout
    (`Costs.start_timeout`), so that a start that hangs does not block the others.

    With `one_at_a_time` a move runs alone on its cards: where memory is measured per card, two concurrent moves could
    not be told apart. A move first reserves its memory, then waits for the start lock, then for its cards in index
    order. So it holds no lock while it waits for memory.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        ledger: Ledger,
        events: EventLog,
        failures: Failures,
        tasks: Tasks,
        clock: Callable[[], float],
        lost: Callable[[int], None],
        one_at_a_time: bool,
    ) -> None:
        """`lost` is called with the index of each card that a start finds gone."""
        self._slots = slots
        self._ledger = ledger
        self._events = events
        self._failures = failures
        self._tasks = tasks
        self._clock = clock
        self._lost = lost
        self._freed = asyncio.Event()
        self._one_start = asyncio.Lock()
        self._cards: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._one_at_a_time = one_at_a_time

    async def make(self, slot: Slot, move: Move) -> None:
        """Make a move. If it fails the expert ends on disk, the ledger exact.

        Raises EngineError, or PlanIsStale if the memory that was planned for it is not there.
        """
        # memory that a dead engine held stays reserved for the next one
        before = 0 if move.source is Tier.DISK else self._ledger.held(slot.name).device
        await self._reserve(slot, move)
        try:
            async with self._turn(slot, move):
                slot.moving_since = began = self._clock()
                starts = move.is_start
                if starts and slot.tier is not Tier.DISK:
                    await self._leave_seat(slot, move)
                await _act(slot, move)
                self._refuse_lost_cards(slot, move)
                if starts:
                    self._take_measured(slot, move.seat)
                elif move.target is Tier.DISK:
                    slot.end_life()
                seconds = self._clock() - began
        except EngineError as error:  # also after a sleep that freed no memory: the process is stopped
            lost = error.index if isinstance(error, CardLost) else None
            if lost is None:
                self._failures.count(slot, str(error), hopeless=isinstance(error, EngineStartFailed))
            await self.put_on_disk(slot, at_once=True)
            if lost is not None:  # not the expert's failure: it may start on another card
                self._lost(lost)
            raise
        except (asyncio.CancelledError, PlanIsStale):
            await asyncio.shield(self._tasks.own(self.put_on_disk(slot)))
            raise
        after = self._settle(slot, move.target, move.seat)
        slot.costs.learn_move(move.source, move.target, seconds)
        made = MoveRecord(slot.name, move.source, move.target, seconds, abs(before - after.device))
        slot.change(tier=move.target, since=self._clock(), seat=move.seat, last_move=made)
        _tell(self._events, made, move.seat)

    @asynccontextmanager
    async def _turn(self, slot: Slot, move: Move) -> AsyncIterator[None]:
        """Wait until the move may run, and exclude moves that must not run beside it."""
        cards = sorted({*slot.seat, *move.seat}) if self._one_at_a_time else ()
        async with AsyncExitStack() as held:
            if move.is_start:
                await held.enter_async_context(self._one_start)
            for card in cards:
                await held.enter_async_context(self._cards[card])
            yield

    async def _leave_seat(self, slot: Slot, move: Move) -> None:
        """Stop a sleeping process that is to start on other cards, where its memory is already reserved."""
        await slot.engine.stop(at_once=False)
        slot.end_life()
        self._ledger.settle(slot.name, bytes_in(slot.engine.footprint, Tier.DEVICE, move.seat))
        self._freed.set()

    def _refuse_lost_cards(self, slot: Slot, move: Move) -> None:
        """Raise PlanIsStale if a card of its seat was lost during the move: no request may be admitted there."""
        if move.target is Tier.DEVICE and not all(map(self._ledger.capacity.on, move.seat)):
            raise PlanIsStale(f"expert '{slot.name}' came to a card that was lost meanwhile")

    def _take_measured(self, slot: Slot, seat: Seat) -> None:
        """Replace the reserved estimate by the measured footprint of the started engine."""
        slot.up.set()
        measured = bytes_in(slot.engine.footprint, Tier.DEVICE, seat)
        if not self._ledger.reserve(slot.name, measured):
            device = f"{mib(slot.engine.footprint.device_awake)} of device"
            reason = f"expert '{slot.name}' needs {device} and {mib(measured.host)}"
            self._failures.count(slot, f"{reason} of host memory, more than was free", hopeless=False)
            raise PlanIsStale(reason)

    async def _reserve(self, slot: Slot, move: Move) -> None:
        """Wait until the evictions have freed the memory, then reserve it.

        Raises PlanIsStale if all evictions have ended and memory is still missing: an expert is larger than planned.
        """
        if move.target is not Tier.DEVICE:
            return
        goal = bytes_in(slot.engine.footprint, Tier.DEVICE, move.seat)
        while not self._ledger.reserve(slot.name, goal):
            if not any(other is not slot and _frees_memory(other) for other in self._slots.values()):
                reason = f"the memory planned for expert '{slot.name}' did not become free"
                self._failures.count(slot, reason, hopeless=False)
                raise PlanIsStale(reason)
            self._freed.clear()
            await self._freed.wait()

    async def put_on_disk(self, slot: Slot, at_once: bool = False) -> None:
        """Stop the engine in any state, without a grace period if `at_once`; afterwards it holds no memory."""
        await slot.engine.stop(at_once)
        slot.end_life()
        self._settle(slot, slot.tier, slot.seat)

    def _settle(self, slot: Slot, tier: Tier, seat: Seat) -> Bytes:
        """Hold exactly what it takes there. Returns that."""
        held = bytes_in(slot.engine.footprint, tier, seat)
        self._ledger.settle(slot.name, held)
        self._freed.set()
        return held


class Tasks:
    """The running tasks of one owner; `end` cancels those that are left."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def own(self, work: Coroutine[None, None, _Found]) -> asyncio.Task[_Found]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    async def end(self) -> None:
        """Cancel all tasks and wait for their end."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.critical("internal error in a move", exc_info=task.exception())


def _tell(events: EventLog, made: MoveRecord, cards: Seat) -> None:
    places = {"from": made.source, "to": made.target, "cards": list(cards)}
    events.record("move", expert=made.expert, **places, seconds=made.seconds, bytes=made.size_bytes)
    logger.info("%s: %s -> %s in %.2f s", made.expert, made.source, made.target, made.seconds)


def _frees_memory(slot: Slot) -> bool:
    """True if its move frees memory: a move down, or a sleeper that is stopped to start on other cards."""
    move = slot.moving
    return move is not None and (move.goes_down or (move.is_start and slot.tier is not Tier.DISK))


async def _act(slot: Slot, move: Move) -> None:
    """Call the engine. Turns every exception of its code into EngineError."""
    engine = slot.engine
    try:
        match move.source, move.target:
            case Tier.DISK, Tier.DEVICE:
                await engine.start(slot.costs.start_timeout(slot.restarts.backoffs), move.seat)
            case Tier.HOST, Tier.DEVICE:
                await engine.wake()
            case Tier.DEVICE, Tier.HOST:
                await engine.sleep()
            case _:
                await engine.stop(at_once=False)
    except EngineError:
        raise
    except Exception as error:  # third-party engine code: its faults must not stop the conductor
        logger.exception("expert '%s': unexpected engine error", slot.name)
        raise EngineError(f"expert '{slot.name}': unexpected engine error\n{error!r}") from error
