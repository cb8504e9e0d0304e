"""Base of engines that are local processes: starts with a time limit, watches the run, cleans up.

Subclasses define the process and when it is ready.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from coe_server.engines.engine import Seat
from coe_server.engines.http_channel import HttpChannel
from coe_server.engines.log_file import last_lines, log_path
from coe_server.engines.vllm_process import KeptProcess
from coe_server.errors import EngineDied, EngineError, EngineStartFailed


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

    def __init__(self, name: str, log_directory: Path, start_timeout_seconds: float) -> None:
        self._name = name
        self._log = log_path(log_directory, name)
        self._start_timeout_seconds = start_timeout_seconds
        self._run: R | None = None  # the last run, running or ended
        self._watch: asyncio.Task[None] | None = None
        self._died = asyncio.Event()
        self._death = ""
        self._seat: Seat = (0,)  # of the newest run

    @abstractmethod
    async def _bring_up(self) -> None:
        """Start a run, store it in `_run` at once, and wait until it answers. The caller sets a time limit."""

    async def start(self, within_seconds: float | None = None, seat: Seat = (0,)) -> None:
        limit_seconds = self._start_timeout_seconds
        if self._run is not None:
            await self.stop(at_once=True)
        self._died.clear()
        self._seat = seat
        try:
            async with asyncio.timeout(min(limit_seconds, within_seconds or limit_seconds)):
                await self._bring_up()
        except (EngineError, OSError) as error:
            try:
                lines = await self._last_lines()
            finally:
                await self.stop(at_once=True)
            reason = _reason(error, limit_seconds, within_seconds)
            raise EngineStartFailed(f"engine '{self._name}' did not start: {reason}\n{lines}") from error
        except BaseException:
            await self.stop(at_once=True)
            raise
        self._watch = asyncio.create_task(self._notice_loss(self.running()))

    async def stop(self, at_once: bool = False) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._run is not None:
            await self._run.end(at_once)

    async def died(self) -> str:
        await self._died.wait()
        return self._death

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
            raise type(error)(f"{error}\n{await self._last_lines()}") from error

    async def _notice_loss(self, run: R) -> None:
        ending = await run.loss()
        self._death = f"engine '{self._name}' {ending}\n{await self._last_lines()}"
        self._died.set()

    async def _last_lines(self) -> str:
        if self._run is not None:
            await self._run.process.written()
        return last_lines(self._log)


def _reason(error: Exception, limit_seconds: float, within_seconds: float | None) -> str:
    if not isinstance(error, TimeoutError):
        return str(error)
    if within_seconds is not None and within_seconds < limit_seconds:
        return f"not up within {within_seconds:.0f} s, far longer than earlier starts"
    return f"not ready after {limit_seconds:g} s (vllm.start_timeout_seconds)"
