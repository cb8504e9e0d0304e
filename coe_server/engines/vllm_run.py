"""One life of a vLLM process: its channel, whether it is ready, whether it still does anything. Moves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from coe_server.engines.http_channel import HttpChannel
from coe_server.engines.kept_process import KeptProcess
from coe_server.engines.vllm_command import VllmLaunch
from coe_server.errors import EngineError

CONTROL_SECONDS = 30.0

_HEALTH_POLL_SECONDS = 0.1  # vLLM does not announce that it is ready, and asking costs it nothing
_LAST_BREATH_SECONDS = 5.0  # from the loss of its core to the end of vLLM's process
_FAILED_GRACE_SECONDS = 1.0  # vLLM without its core does not end on SIGTERM; others may wait for its memory
_SIGNALLED = 128  # added to a signal's number in an exit status


class VllmRun:
    """From the start of the process to its end. `ending` is set by whoever ends it: from then on nobody is let in."""

    def __init__(self, launch: VllmLaunch, process: KeptProcess, http: HttpChannel, device_bytes_before: int) -> None:
        self.process = process
        self.http = http
        self.device_bytes_before = device_bytes_before  # 0 where there is no GPU
        self.watch: asyncio.Task[None] | None = None
        self.ending = False
        self._launch = launch
        self._moving = False
        self._moves = 0  # begun so far

    @property
    def over(self) -> bool:
        return self.ending or self.process.over.done()

    async def until_healthy(self) -> None:
        """Raises `EngineError` if the process ends before it is ready. How long to wait is the caller's to say."""
        while not await self._healthy():
            await asyncio.wait({self.process.over}, timeout=_HEALTH_POLL_SECONDS)
            if self.process.over.done():
                raise EngineError(_ending(self.process.over.result()))

    async def ask_worker(self, method: str, timeout_seconds: float = CONTROL_SECONDS) -> Any:
        """Have a method of the process with the weights called; its answer."""
        answer = await self.http.ask("POST", "/collective_rpc", timeout_seconds, {"method": method})
        return answer["results"][0]

    @contextmanager
    def on_the_move(self) -> Iterator[None]:
        """A move may keep the worker busy for longer than a pulse, and has a deadline of its own."""
        self._moves += 1
        self._moving = True
        try:
            yield
        finally:
            self._moving = False

    async def loss(self) -> str:
        """Wait until the process ends, or lives on without doing anything."""
        while not self.process.over.done():
            await asyncio.wait({self.process.over}, timeout=self._launch.pulse_seconds)
            if not self.process.over.done() and not await self._has_pulse():
                await asyncio.wait({self.process.over}, timeout=_LAST_BREATH_SECONDS)
                if not self.process.over.done():
                    return f"hangs: its worker did not answer within {self._launch.pulse_timeout_seconds:g} s"
        return _ending(self.process.over.result())

    async def end(self, at_once: bool) -> None:
        """Nobody is left when this returns. It may be called again if it was cancelled."""
        grace_seconds = self._launch.stop_timeout_seconds
        self.ending = True
        if self.watch is not None:
            self.watch.cancel()
        try:
            await self.http.close()
        finally:
            await self.process.end(min(grace_seconds, _FAILED_GRACE_SECONDS) if at_once else grace_seconds)

    async def _healthy(self) -> bool:
        try:
            await self.http.ask("GET", "/health", CONTROL_SECONDS)
        except EngineError:
            return False
        return True

    async def _has_pulse(self) -> bool:
        """Ask the worker itself: vLLM's `/health` is answered even while the process with the weights stands still."""
        moves = self._moves
        if self._moving:
            return True
        try:
            await self.ask_worker("check_health", self._launch.pulse_timeout_seconds)
        except EngineError:
            return self._moves != moves
        return True


def _ending(status: int) -> str:
    if status > _SIGNALLED:
        return f"was killed by signal {status - _SIGNALLED}"
    return f"ended with status {status}"
