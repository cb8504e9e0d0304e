"""Has the weight files of experts that cannot start yet read into the page cache. Knows no files and no memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from coe_server.cache.guesses import Guess, Guesses
from coe_server.cache.tiers import Bytes
from coe_server.events import EventLog

logger = logging.getLogger(__name__)

LIFETIME_SECONDS = 600.0  # whoever starts later than this is not taken to have had its files in memory


class WeightReader(Protocol):
    """Reads an expert's weight files, so that the next one who reads them finds them in memory."""

    async def read(self, expert: str, unclaimed: Bytes, read_before: int) -> int:
        """The bytes it read: 0 if there are no files, or no memory for them beside what the tiers may still take
        (`unclaimed`) and the `read_before` bytes that earlier reads count on.

        Cancelling ends it soon. Raises OSError for files that cannot be read.
        """


@dataclass(frozen=True, slots=True)
class _Read:
    size_bytes: int
    until: float


class Lookahead:
    """One expert's files at a time. What was read counts as useful if the expert starts while that is not long ago."""

    def __init__(
        self,
        reader: WeightReader,
        guesses: Guesses,
        events: EventLog,
        clock: Callable[[], float],
        done: Callable[[], None],
    ) -> None:
        self.reading: str | None = None
        self._reader = reader
        self._guesses = guesses
        self._events = events
        self._clock = clock
        self._done = done
        self._task: asyncio.Task[None] | None = None
        self._read: dict[str, _Read] = {}

    def has_read(self, expert: str) -> bool:
        return expert in self._read

    def read(self, expert: str | None, unclaimed: Bytes) -> None:
        """From now on this expert's files are read, or nobody's; what was being read for another was for nothing.

        `unclaimed` is what experts may still take; it is not read into.
        """
        self._forget_what_is_old()
        if expert == self.reading:
            return
        self._end(useful=False)
        if expert is not None:
            self.reading = expert
            self._task = asyncio.create_task(self._have_read(expert, unclaimed))

    def starts(self, expert: str) -> None:
        """Its engine reads the files itself from now on."""
        self._forget_what_is_old()
        self._read.pop(expert, None)
        if self.reading == expert:
            self._end(useful=True)
        self._guesses.right(Guess.PAGE_CACHE, expert)

    async def close(self) -> None:
        """Read no further; when this returns nobody does."""
        task = self._task
        self._end(useful=False)
        if task is not None:
            await asyncio.wait({task})

    def _end(self, useful: bool) -> None:
        """Read no further, if somebody's files are being read."""
        if self._task is None or self.reading is None:
            return
        self._task.cancel()
        self._guesses.begin(Guess.PAGE_CACHE, self.reading)
        if not useful:
            self._guesses.wrong(Guess.PAGE_CACHE, self.reading)
        self.reading = self._task = None

    async def _have_read(self, expert: str, unclaimed: Bytes) -> None:
        began = self._clock()
        try:
            size = await self._reader.read(expert, unclaimed, sum(one.size_bytes for one in self._read.values()))
        except OSError as error:
            logger.info("weight files of expert '%s' were not read ahead: %s", expert, error)
            size = 0
        now = self._clock()
        self._read[expert] = _Read(size, now + LIFETIME_SECONDS)
        self.reading = self._task = None
        if size:
            self._guesses.begin(Guess.PAGE_CACHE, expert)
            self._events.record("prefetch", expert=expert, seconds=now - began, bytes=size)
        self._done()

    def _forget_what_is_old(self) -> None:
        now = self._clock()
        for expert in [expert for expert, read in self._read.items() if read.until <= now]:
            del self._read[expert]
            self._guesses.wrong(Guess.PAGE_CACHE, expert)
