"""Base of engines that are local processes: starts with a time limit, watches the run, cleans up.

Subclasses define the process and when it is ready.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from coe_server.engines.engine import Seat
from coe_server.engines.http_channel import HttpChannel
from coe_server.engines.kept_process import KeptProcess
from coe_server.engines.log_file import last_lines, log_end, log_path
from coe_server.errors import CardLost, EngineDied, EngineError, EngineStartFailed


class Run(Protocol):
    """One run of a process, from its start to its end."""

    process: KeptProcess
    http: HttpChannel

    @property
    def over(self) -> bool:
        """True if it has ended or is ending."""

    async def loss(self) -> str:
        """Wait until it ends or hangs. Returns what happened."""

    async def end(self, at_once: bool) -> None:
        """End it; on return no process is left. A second call waits for the first."""


R = TypeVar("R", bound=Run)


class ProcessEngine(ABC, Generic[R]):
    """The part of an `Engine` (see `engine.py`) common to all processes: start, stop, detection of its death."""

    def __init__(self, name: str, log_directory: Path, start_timeout_seconds: float, default_seat: Seat = (0,)) -> None:
        self._name = name
        self._log = log_path(log_directory, name)
        self._start_timeout_seconds = start_timeout_seconds
        self._run: R | None = None  # the last run, running or ended
        self._watch: asyncio.Task[None] | None = None
        self._died = asyncio.Event()
        self._death = ""
        self._default_seat = default_seat
        self._seat = default_seat  # of the newest run

    @abstractmethod
    async def _bring_up(self) -> None:
        """Start a run, store it in `_run` at once, and wait until it answers. The caller sets a time limit."""

    async def _end(self, run: R, at_once: bool) -> None:
        """End a run. A second call waits for the first."""
        await run.end(at_once)

    async def _loss(self, run: R) -> str:
        """Wait until the run is lost. Returns what happened."""
        return await run.loss()

    async def start(self, within_seconds: float | None = None, seat: Seat = ()) -> None:
        limit_seconds = self._start_timeout_seconds
        if self._run is not None:  # a run that died or was stopped
            await self._end(self._run, at_once=True)
        self._died.clear()
        self._seat = seat or self._default_seat
        try:
            async with asyncio.timeout(min(limit_seconds, within_seconds or limit_seconds)):
                await self._bring_up()
        except CardLost:
            await self.stop(at_once=True)
            raise
        except (EngineError, OSError) as error:
            try:
                lines = await _last_lines(self._run, self._log)
            finally:
                await self.stop(at_once=True)
            reason = _reason(error, limit_seconds, within_seconds)
            raise EngineStartFailed(f"engine '{self._name}' did not start: {reason}\n{lines}") from error
        except BaseException:
            await self.stop(at_once=True)
            raise
        assert self._run is not None, "brought up"
        self._watch = asyncio.create_task(self._notice_loss(self._run))

    async def stop(self, at_once: bool = False) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._run is not None:
            await self._end(self._run, at_once)

    async def died(self) -> str:
        await self._died.wait()
        return self._death

    def log_end(self, count: int) -> list[str]:
        """The last lines of its log, bounded, without known secrets and what looks like a prompt."""
        return log_end(self._log, count, self._secrets())

    def _secrets(self) -> Iterable[str]:
        """Texts that its log must not show."""
        return ()

    def running(self) -> R:
        """The present run. Raises `EngineDied` if there is none."""
        if self._run is None or self._run.over or self._died.is_set():
            raise EngineDied(f"engine '{self._name}' is not running")
        return self._run

    @asynccontextmanager
    async def _log_quoted(self) -> AsyncIterator[None]:
        """Add the relevant log lines to an EngineError raised in this context."""
        try:
            yield
        except EngineError as error:
            raise type(error)(f"{error}\n{await _last_lines(self._run, self._log)}") from error

    async def _notice_loss(self, run: R) -> None:
        ending = await self._loss(run)
        self._death = f"engine '{self._name}' {ending}\n{await _last_lines(run, self._log)}"
        self._died.set()


async def _last_lines(run: Run | None, log: Path) -> str:
    """The most relevant lines of the engine's log, up to its last output."""
    if run is not None:
        await run.process.noted()
    return last_lines(log)


def _reason(error: Exception, limit_seconds: float, within_seconds: float | None) -> str:
    if not isinstance(error, TimeoutError):
        return str(error)
    if within_seconds is not None and within_seconds < limit_seconds:
        return f"not up within {within_seconds:.0f} s, far longer than earlier starts"
    return f"not ready after {limit_seconds:g} s (vllm.start_timeout_seconds)"
