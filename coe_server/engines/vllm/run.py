"""One run of `vllm serve`: its process, the channel to it, and liveness probes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coe_server.engines.http_channel import HttpChannel
from coe_server.engines.kept_process import KeptProcess, ending, make_run_directory
from coe_server.engines.log_file import fresh_log
from coe_server.engines.vllm.command import Place, VllmLaunch, engine_environment, serve_command
from coe_server.errors import EngineError

CONTROL_SECONDS = 30.0

_HEALTH_POLL_SECONDS = 0.1  # vLLM does not announce that it is ready; polling is cheap
_LAST_BREATH_SECONDS = 5.0  # from the death of its core to the end of vLLM's process
_FAILED_GRACE_SECONDS = 1.0  # vLLM without its core ignores SIGTERM, and other experts may wait for its memory


class VllmRun:
    """One run of `vllm serve`, from the start of the process to its end, with a channel for its requests."""

    def __init__(self, launch: VllmLaunch, process: KeptProcess, http: HttpChannel, run_directory: Path) -> None:
        self.launch = launch
        self.process = process
        self.http = http
        self.longest_tokens: int | None = None  # request and answer together, once reported by the engine
        self.run_directory = run_directory
        self.one_end = asyncio.Lock()
        self.gone = False  # ended, and its memory released
        self._ending = False
        self._moving = False
        self._moves = 0  # number begun

    @classmethod
    async def start(cls, launch: VllmLaunch, place: Place) -> VllmRun:
        """Start the process and open the channel, without waiting until it is ready. Raises `OSError`."""
        run_directory = make_run_directory(launch.user)
        socket = run_directory / "engine.sock"
        try:
            process = await KeptProcess.start(
                serve_command(launch, socket, place),
                engine_environment(launch, run_directory, place),
                run_directory,
                fresh_log(launch.log_directory, launch.name),
                launch.user,
                place.all_cores,
            )
        except BaseException:
            shutil.rmtree(run_directory, ignore_errors=True)
            raise
        return cls(launch, process, HttpChannel(launch.name, "http://engine", socket), run_directory)

    @property
    def over(self) -> bool:
        """True if the process has ended or is ending; then no request is sent to it."""
        return self._ending or self.process.over.done()

    async def until_healthy(self) -> None:
        """Wait until it is ready. Raises `EngineError` if it ends before. The caller sets a time limit."""
        while not await _is_healthy(self.http):
            await asyncio.wait({self.process.over}, timeout=_HEALTH_POLL_SECONDS)
            if self.process.over.done():
                raise EngineError(ending(self.process.over.result()))
        await self.process.noted()

    async def ask_worker(self, method: str, timeout_seconds: float = CONTROL_SECONDS) -> Any:
        """Call a method of the workers, the processes with the weights. Returns the first one's result."""
        return (await self.ask_ranks(method, timeout_seconds))[0]

    async def ask_ranks(self, method: str, timeout_seconds: float = CONTROL_SECONDS) -> list[Any]:
        """The same with the results of all ranks, of the first copy alone where there are several."""
        answer = await self.http.ask("POST", "/collective_rpc", timeout_seconds, {"method": method})
        results: list[Any] = answer["results"]
        return results

    @contextmanager
    def on_the_move(self) -> Iterator[None]:
        """Suspend liveness probes in this context: a move keeps the worker busy and has its own time limit."""
        self._moves += 1
        self._moving = True
        try:
            yield
        finally:
            self._moving = False

    async def loss(self) -> str:
        """Wait until the process ends or its worker fails a liveness probe. Returns what happened."""
        while not self.process.over.done():
            await asyncio.wait({self.process.over}, timeout=self.launch.pulse_seconds)
            if not self.process.over.done() and not await self._is_alive():
                await asyncio.wait({self.process.over}, timeout=_LAST_BREATH_SECONDS)
                if not self.process.over.done():
                    return f"hangs: its worker did not answer within {self.launch.pulse_timeout_seconds:g} s"
        return ending(self.process.over.result())

    async def end(self, at_once: bool) -> None:
        """End it; on return no process is left. After a cancellation it may be called again."""
        grace_seconds = self.launch.stop_timeout_seconds
        self._ending = True
        try:
            await self.http.close()
        finally:
            await self.process.end(min(grace_seconds, _FAILED_GRACE_SECONDS) if at_once else grace_seconds)

    async def _is_alive(self) -> bool:
        """Probe the worker itself: vLLM answers `/health` even if the process with the weights hangs."""
        moves = self._moves
        if self._moving:
            return True
        try:
            await self.ask_worker("check_health", self.launch.pulse_timeout_seconds)
        except EngineError:
            return self._moves != moves
        return True


async def _is_healthy(http: HttpChannel) -> bool:
    try:
        await http.ask("GET", "/health", CONTROL_SECONDS)
    except EngineError:
        return False
    return True
