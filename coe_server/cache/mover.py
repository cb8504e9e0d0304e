"""Carries out plans, each in a task of its own: its moves in order. Makes no decisions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coe_server.cache.moves import Moves, PlanIsStale, Tasks
from coe_server.cache.planner import Plan
from coe_server.cache.slot import Slot
from coe_server.cache.tiers import Tier
from coe_server.errors import EngineError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Venture:
    """A plan in execution."""

    plan: Plan
    task: asyncio.Task[None] | None = None
    under_way: str | None = None  # the expert whose move was begun last
    given_up: bool = False  # then moves that have not begun are dropped


class Mover:
    """Runs plans concurrently. What each move needs, and which may run at a time, `moves` knows."""

    def __init__(self, slots: Mapping[str, Slot], moves: Moves, tasks: Tasks, changed: Callable[[], None]) -> None:
        """`changed` is called when an expert no longer moves."""
        self._slots = slots
        self._moves = moves
        self._tasks = tasks
        self._changed = changed
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
            await self._moves.put_on_disk(slot, at_once=True)
        finally:
            slot.halt()
            self._changed()

    async def put_everything_away(self) -> None:
        """Cancel all moves and stop every engine; afterwards no memory is held."""
        await self._tasks.end()
        await asyncio.gather(*(self._moves.put_on_disk(slot) for slot in self._slots.values()))
        await self._tasks.end()  # a health check may have started meanwhile

    async def _carry_out(self, venture: _Venture) -> None:
        """Make the moves in order. After one that fails, later ones are dropped."""
        plan = venture.plan
        try:
            for index, move in enumerate(plan.moves):
                if venture.given_up:
                    return
                venture.under_way = move.expert
                slot, later = self._slots[move.expert], plan.moves[index + 1 :]
                slot.depart(move)
                await self._moves.make(slot, move)
                if all(other.expert != slot.name for other in later):
                    slot.halt()
                    self._changed()  # another plan may evict it further, to disk
        except EngineError as error:
            logger.warning("%s", error)
        except PlanIsStale as stale:
            logger.info("%s; planning again", stale)
        finally:
            for move in plan.moves:
                if self._slots[move.expert].moving is move:  # otherwise another plan already moves it
                    self._slots[move.expert].halt()
            self._changed()
