"""Carries out plans: calls engines, keeps the ledger, measures. Makes no decisions."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from coe_server.cache.evictions import Move
from coe_server.cache.planner import Plan
from coe_server.cache.slot import MoveRecord, Slot
from coe_server.cache.tiers import Ledger, Tier, bytes_in, mib
from coe_server.engines.engine import Seat
from coe_server.errors import CardLost, EngineError, EngineStartFailed
from coe_server.events import EventLog

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from coe_server.cache.health import Failures

_Found = TypeVar("_Found")


class _PlanIsStale(Exception):
    """The state that the plan assumed no longer holds. No engine has failed; a new plan is needed."""


@dataclass(slots=True)
class _Venture:
    """A plan in execution."""

    plan: Plan
    task: asyncio.Task[None] | None = None
    under_way: str | None = None  # the expert whose move was begun last
    given_up: bool = False  # then moves that have not begun are dropped


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


class Mover:
    """Runs plans concurrently where the ledger allows it. Engines start one at a time, with a timeout
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
        changed: Callable[[], None],
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
        self._changed = changed
        self._lost = lost
        self._freed = asyncio.Event()
        self._one_start = asyncio.Lock()
        self._cards: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._one_at_a_time = one_at_a_time
        self._ventures: dict[str, _Venture] = {}  # the latest one by the expert it loads

    def begin(self, plan: Plan) -> None:
        """Start executing `plan`; its experts admit no request from now on."""
        for move in plan.moves:
            self._slots[move.expert].depart(move)
        venture = self._ventures[plan.moves[-1].expert] = _Venture(plan)
        venture.task = self._tasks.own(self._carry_out(venture))

    def give_up(self, slot: Slot) -> None:
        """Cancel the plan that loads this expert. It ends on disk, or where it was if its move had not begun.

        An eviction that has begun for it is completed: an expert stopped halfway would need a cold start.
        """
        venture = self._ventures[slot.name]
        if venture.given_up:
            return
        venture.given_up = True
        if venture.under_way == slot.name and venture.task is not None:
            venture.task.cancel()
            return
        for move in venture.plan.moves:
            if move.expert != venture.under_way and self._slots[move.expert].moving is move:
                self._slots[move.expert].halt()

    def abandon(self, slot: Slot) -> None:
        """Stop its engine at once, even if it is leased. It admits no request from now on."""
        slot.depart(slot.move_to(Tier.DISK))
        self._tasks.own(self._abandon(slot))

    async def _abandon(self, slot: Slot) -> None:
        try:
            await self.put_on_disk(slot, at_once=True)
        finally:
            slot.halt()
            self._changed()

    async def put_everything_away(self) -> None:
        """Cancel all moves and stop every engine; afterwards no memory is held."""
        await self._tasks.end()
        await asyncio.gather(*(self.put_on_disk(slot) for slot in self._slots.values()))
        await self._tasks.end()  # a health check may have started meanwhile

    async def _carry_out(self, venture: _Venture) -> None:
        """Make the moves in order.

        An expert whose move fails ends on disk, the ledger exact; later moves are dropped.
        """
        plan = venture.plan
        try:
            for index, move in enumerate(plan.moves):
                if venture.given_up:
                    return
                venture.under_way = move.expert
                slot, later = self._slots[move.expert], plan.moves[index + 1 :]
                await self._move(slot, move)
                if all(other.expert != slot.name for other in later):
                    slot.halt()
                    self._changed()  # another plan may evict it further, to disk
        except EngineError as error:
            logger.warning("%s", error)
        except _PlanIsStale as stale:
            logger.info("%s; planning again", stale)
        finally:
            for move in plan.moves:
                if self._slots[move.expert].moving is move:  # otherwise another plan already moves it
                    self._slots[move.expert].halt()
            self._changed()

    async def _move(self, slot: Slot, move: Move) -> None:
        slot.depart(move)
        held = self._ledger.held(slot.name)
        await self._reserve(slot, move)
        try:
            async with self._turn(slot, move):
                slot.moving_since = began = self._clock()
                if move.is_start and slot.tier is not Tier.DISK:
                    await self._leave_seat(slot, move)
                await _act(slot, move)
                self._refuse_lost_cards(slot, move)
                if move.is_start:
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
        except (asyncio.CancelledError, _PlanIsStale):
            await asyncio.shield(self._tasks.own(self.put_on_disk(slot)))
            raise
        slot.change(tier=move.target, since=self._clock(), seat=move.seat)
        self._settle(slot)
        # memory that a dead engine held stays reserved for the next one
        before = 0 if move.source is Tier.DISK else held.device
        _record(self._events, slot, move, seconds, abs(before - self._ledger.held(slot.name).device))

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
        """Raise _PlanIsStale if a card of its seat was lost during the move: no request may be admitted there."""
        if move.target is Tier.DEVICE and not all(map(self._ledger.capacity.on, move.seat)):
            raise _PlanIsStale(f"expert '{slot.name}' came to a card that was lost meanwhile")

    def _take_measured(self, slot: Slot, seat: Seat) -> None:
        """Replace the reserved estimate by the measured footprint of the started engine."""
        slot.up.set()
        measured = bytes_in(slot.engine.footprint, Tier.DEVICE, seat)
        if not self._ledger.room_for(slot.name, measured):
            device = f"{mib(slot.engine.footprint.device_awake)} of device"
            reason = f"expert '{slot.name}' needs {device} and {mib(measured.host)}"
            self._failures.count(slot, f"{reason} of host memory, more than was free", hopeless=False)
            raise _PlanIsStale(reason)

    async def _reserve(self, slot: Slot, move: Move) -> None:
        """Wait until the evictions have freed the memory, then reserve it.

        Raises _PlanIsStale if all evictions have ended and memory is still missing: an expert is larger than planned.
        """
        if move.target is not Tier.DEVICE:
            return
        goal = bytes_in(slot.engine.footprint, Tier.DEVICE, move.seat)
        while not self._ledger.room_for(slot.name, goal):
            if not any(other is not slot and _frees_memory(other) for other in self._slots.values()):
                reason = f"the memory planned for expert '{slot.name}' did not become free"
                self._failures.count(slot, reason, hopeless=False)
                raise _PlanIsStale(reason)
            self._freed.clear()
            await self._freed.wait()
        self._ledger.reserve(slot.name, goal)

    async def put_on_disk(self, slot: Slot, at_once: bool = False) -> None:
        """Stop the engine in any state, without a grace period if `at_once`; afterwards it holds no memory."""
        await slot.engine.stop(at_once)
        slot.end_life()
        self._settle(slot)

    def _settle(self, slot: Slot) -> None:
        self._ledger.settle(slot.name, bytes_in(slot.engine.footprint, slot.tier, slot.seat))
        self._freed.set()


def _record(events: EventLog, slot: Slot, move: Move, seconds: float, size_bytes: int) -> None:
    """Learn the cost of a completed move, and report it."""
    slot.costs.learn_move(move.source, move.target, seconds)
    slot.change(last_move=MoveRecord(slot.name, move.source, move.target, seconds, size_bytes))
    places = {"from": move.source, "to": move.target, "cards": list(move.seat)}
    events.record("move", expert=slot.name, **places, seconds=seconds, bytes=size_bytes)
    logger.info("%s: %s -> %s in %.2f s", slot.name, move.source, move.target, seconds)


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
