"""Moves the router's scores by ratings, one bounded step after another, and undoes the last one.

`evidence` decides what a rating is worth; here the log is read, and each step is kept in a file before it is served.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coe_server.errors import CoeError
from coe_server.journal.entries import Kept
from coe_server.journal.journal import Journal
from coe_server.journal.steps import Step, Steps, Table, read_steps, steps_as_json, write_steps
from coe_server.routing.evidence import (
    RATINGS_PER_STEP,
    Difference,
    Evidence,
    Pair,
    Turn,
    compared,
    evidence,
    next_step,
    resumed,
)
from coe_server.routing.exploration import Learned, nothing_learned
from coe_server.routing.router import Router

logger = logging.getLogger(__name__)


class Learner:
    """Learns for the router that `router` returns; without a router that draws, it does nothing.

    `file`: where the steps are kept; `steps`: those in force. `run` looks at the log at the start, after every hundred
    ratings, and when asked.
    """

    def __init__(self, file: Path, journal: Journal, router: Callable[[], object]) -> None:
        self._file = file
        self._journal = journal
        self._router = router
        self.steps = read_steps(file)
        self._noted = 0
        self._look = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._found: Evidence | None = None
        self._differences: list[Difference] = []

    @property
    def ratings(self) -> int:
        """Ratings in use."""
        return len(self._found) if self._found is not None else 0

    @property
    def interval_widths(self) -> dict[tuple[str, str], float]:
        """(category, expert) -> the width of the interval of its difference to the category's best, if known."""
        known = ((one, one.interval) for one in self._differences)
        return {(one.category, one.other): told.high - told.low for one, told in known if told is not None}

    def rated(self) -> None:
        """Note that an answer was rated."""
        self._noted += 1
        if self._noted % RATINGS_PER_STEP == 0:
            self._look.set()

    def look_soon(self) -> None:
        """Look at the log again: the router was replaced."""
        self._look.set()

    async def run(self) -> None:
        """Look at the log whenever there is enough that is new, until cancelled."""
        while True:
            try:
                await self.look()
            except CoeError as error:
                logger.warning("learning: the ratings cannot be used now: %s", error)
            except OSError as error:
                logger.error("learning: a step cannot be kept (%s); scores stay as they are (state_directory)", error)
            await self._look.wait()
            self._look.clear()

    async def look(self) -> None:
        """Read the ratings and make a step if there are enough new ones. Raises JournalUnavailable or OSError."""
        async with self._one_at_a_time:
            await self._update(may_step=True)

    async def undo(self) -> Steps:
        """Undo the last step; its ratings no longer count. Raises NothingToUndo, JournalUnavailable or OSError."""
        async with self._one_at_a_time:
            steps = self.steps.without_last(time.time())
            await asyncio.to_thread(write_steps, self._file, steps)
            self.steps = steps
            logger.info("learning: the last step was undone; %d steps are in force", len(steps.steps))
            await self._update(may_step=False)
            return steps

    async def _update(self, may_step: bool) -> None:
        router = self._router()
        if not isinstance(router, Router) or router.exploration == "off":
            return
        kept = await self._journal.rated()
        before = with_table(nothing_learned((*router.learned.rows,), (*router.learned.columns,)), self.steps)
        usable = [one for one in kept if self.steps.counts(one.time)]
        found, after = await asyncio.to_thread(_considered, usable, before, self.steps, may_step)
        after = after.only(router.rated_experts)
        if after.steps != before.steps:
            step = Step(usable[-1].time, len(found), found.source or "", table_of(after))
            steps = self.steps.and_then(step)
            await asyncio.to_thread(write_steps, self._file, steps)
            self.steps = steps
            logger.info("learning: step %d, by %d ratings (%s)", steps.number, len(found), found.source)
        self._found = found
        self._differences = compared(found, after.rows, after.columns, after.shifts)
        router.learned = after

    def as_json(self) -> dict[str, Any]:
        """What was learned, for the page and `coe learning show`."""
        found = self._found
        return {
            "steps": steps_as_json(self.steps),
            "ratings": self.ratings,
            "source": found.source if found is not None else None,
            "pooled": dict(found.pooled) if found is not None else {},
            "left_out": dict(found.left_out) if found is not None else {},
            "differences": [_difference_json(one) for one in self._differences],
        }


def _considered(usable: Sequence[Kept], before: Learned, steps: Steps, may_step: bool) -> tuple[Evidence, Learned]:
    found = evidence(turns_of(usable), pairs_of(usable), before.rows, before.columns)
    last = steps.steps[-1].time if steps.steps else 0.0
    new = sum(one.time > last for one in usable)
    if may_step and new >= RATINGS_PER_STEP and found.is_enough:
        return found, next_step(found, before, steps.number)
    return found, resumed(found, before, steps.number)


def with_table(fresh: Learned, steps: Steps) -> Learned:
    """What was learned before, as far as the categories and experts are still there."""
    shifts = np.zeros_like(fresh.shifts)
    for category, row in steps.table.items():
        for expert, shift in row.items():
            if category in fresh.rows and expert in fresh.columns:
                shifts[fresh.rows[category], fresh.columns[expert]] = shift
    return Learned(fresh.rows, fresh.columns, shifts, fresh.draws, fresh.settled, steps.number)


def table_of(known: Learned) -> Table:
    return {
        category: {expert: round(float(known.shifts[row, column]), 6) for expert, column in known.columns.items()}
        for category, row in known.rows.items()
        if known.shifts[row].any()
    }


def turns_of(kept: Iterable[Kept]) -> list[Turn]:
    """The turns of drawn conversations."""
    found = []
    for one in kept:
        drawn: Mapping[str, Any] | None = one.decision.get("exploration")
        if drawn is None or one.decision["reason"] in {"requested", "fallback"}:
            continue
        found.append(
            Turn(
                one.time,
                drawn["conversation"],
                drawn["category"],
                drawn["drawn"],
                one.decision["expert"],
                drawn["probabilities"],
                drawn["expected"],
                one.ratings,
                one.owner,
            )
        )
    return found


def pairs_of(kept: Iterable[Kept]) -> list[Pair]:
    """The compared answers, with what the router expected of both."""
    found = []
    for one in kept:
        other, decision = one.compared, one.decision
        if other is None or decision["category"] is None:
            continue
        experts, scores = (decision["expert"], other["expert"]), (other["own_score"], other["score"])
        found.append(Pair(decision["category"], experts, scores, (other["own_expected"], other["expected"])))
    return found


def _difference_json(one: Difference) -> dict[str, Any]:
    told = one.interval
    return {
        "category": one.category,
        "best": one.best,
        "other": one.other,
        "ratings": one.ratings,
        "difference": told and round(told.mean, 4),
        "low": told and round(told.low, 4),
        "high": told and round(told.high, 4),
        "needed": told and told.needed,
    }
