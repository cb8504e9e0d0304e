"""One expert's vLLM: a `vllm serve` child on a private Unix socket that starts, sleeps, wakes and stops.

Knows nothing of the other experts. What vLLM 0.32 does and does not promise is noted where we depend on it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coe_server.engines.canary import CANARY_REQUEST, canary_tokens
from coe_server.engines.device_memory import used_device_bytes
from coe_server.engines.engine import EngineRequest, EngineResponse, Footprint
from coe_server.engines.http_channel import HttpChannel
from coe_server.engines.image import WeightImage
from coe_server.engines.kept_process import KeptProcess, make_run_directory
from coe_server.engines.log_file import fresh_log, last_lines, log_path
from coe_server.engines.process_memory import private_bytes
from coe_server.engines.vllm_command import VllmLaunch, engine_environment, estimated_footprint, serve_command
from coe_server.errors import EngineDied, EngineError, EngineStartFailed

_HEALTH_POLL_SECONDS = 0.1  # vLLM does not announce that it is ready, and asking costs it nothing
_CONTROL_SECONDS = 30.0
_FREED_SECONDS = 2.0
_FREED_POLL_SECONDS = 0.01
_FREED_SHARE = 0.9
_LAST_BREATH_SECONDS = 5.0  # from the loss of its core to the end of vLLM's process
_SIGNALLED = 128  # added to a signal's number in an exit status


class VllmEngine:
    """An `Engine` (see `engine.py`) that runs `vllm serve` as its child.

    `device_bytes` tells how much of the GPU is in use; on a CPU the child's own memory is looked at instead.
    """

    def __init__(self, launch: VllmLaunch, device_bytes: Callable[[], int] = used_device_bytes) -> None:
        self._launch = launch
        self._device_bytes = device_bytes
        self._footprint = estimated_footprint(launch)
        self._run: _Run | None = None
        self._image: WeightImage | None = None  # outlives a run that died, not one that was stopped
        self._canary: str | None = None  # what the weights in the image answer
        self._died = asyncio.Event()
        self._death = ""

    @property
    def footprint(self) -> Footprint:
        return self._footprint

    async def start(self) -> None:
        await self._end_run()  # what is left of a run that died; its image serves this one
        self._died.clear()
        try:
            bytes_before = self._device_bytes() if self._launch.platform == "cuda" else 0
            run = self._run = await self._launched()
            await self._until_healthy(run)
            await self._secure_image(run)
            self._footprint = await self._measured(run, bytes_before)
            await self._check_canary(run)
        except (EngineError, OSError) as error:
            lines = last_lines(self._log)
            await self.stop()
            raise EngineStartFailed(f"engine '{self._launch.name}' did not start: {error}\n{lines}") from error
        except BaseException:
            await self.stop()
            raise
        run.watch = asyncio.create_task(self._notice_loss(run))

    async def sleep(self) -> None:
        run = self._living_run()
        if not self._launch.can_sleep:
            raise EngineError(f"engine '{self._launch.name}' was started without the means to sleep")
        with run.on_the_move():
            held_bytes = self._held_bytes(run)
            # Query parameters: vLLM silently ignores a JSON body and then aborts what is still running.
            await run.http.ask("POST", "/sleep?level=1&mode=wait", self._launch.move_timeout_seconds)
            freed_bytes = await self._freed(run, held_bytes)
        if self._launch.platform == "cuda":
            asleep = max(0, self._footprint.device_awake - freed_bytes)
            self._footprint = replace(self._footprint, device_asleep=asleep)

    async def wake(self) -> None:
        run = self._living_run()
        with run.on_the_move():
            await run.http.ask("POST", "/wake_up", self._launch.move_timeout_seconds)
            await self._check_canary(run)

    async def stop(self) -> None:
        try:
            await self._end_run()
        finally:
            image, self._image, self._canary = self._image, None, None
            if image is not None:
                image.close()

    async def died(self) -> str:
        await self._died.wait()
        return self._death

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[EngineResponse]:
        async with self._living_run().http.send(request) as response:
            yield response

    async def memory_report(self) -> dict[str, float]:
        """The sleeping worker's own account (CPU only): exact bytes, image writes, seconds of the last moves."""
        return await self._worker_report(self._living_run())

    async def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if run.watch is not None:
            run.watch.cancel()
        try:
            await run.http.close()
        finally:
            await run.process.end(self._launch.stop_timeout_seconds)

    async def _launched(self) -> _Run:
        """The child's process and its channel, with an image at hand; answering comes later."""
        launch, run_directory = self._launch, make_run_directory()
        socket = run_directory / "engine.sock"
        if self._image is None and launch.can_sleep and launch.platform == "cpu":
            self._image = WeightImage(launch.name)
        image_path = self._image.path if self._image else None
        try:
            process = await KeptProcess.start(
                serve_command(launch, socket),
                engine_environment(launch, os.environ, run_directory, image_path),
                run_directory,
                fresh_log(launch.log_directory, launch.name),
            )
        except BaseException:
            shutil.rmtree(run_directory, ignore_errors=True)
            raise
        return _Run(process, HttpChannel(launch.name, "http://engine", socket))

    async def _until_healthy(self, run: _Run) -> None:
        try:
            async with asyncio.timeout(self._launch.start_timeout_seconds):
                while not await _healthy(run):
                    await asyncio.wait({run.process.over}, timeout=_HEALTH_POLL_SECONDS)
                    if run.process.over.done():
                        raise EngineError(_ending(run.process.over.result()))
        except TimeoutError as error:
            raise EngineError(f"not ready after {self._launch.start_timeout_seconds:g} s") from error

    async def _secure_image(self, run: _Run) -> None:
        """Have the image written now, so that no sleep has to; or know that the engine was loaded from it."""
        if self._image is None:
            return
        report = await self._worker_report(run)
        if not report["loaded_from_image"]:
            self._canary = None
            if self._image.sealed:  # the worker found a reason not to trust it
                self._image.renew()
            await self._ask_worker(run, "write_image", self._launch.move_timeout_seconds)
        if not self._image.sealed:
            raise EngineError(f"engine '{self._launch.name}' left its image open to changes")

    async def _measured(self, run: _Run, bytes_before: int) -> Footprint:
        private = private_bytes(run.process.pid)
        if self._launch.platform == "cuda":
            awake = max(0, self._device_bytes() - bytes_before)
            return replace(self._footprint, device_awake=awake, host_process=private)
        report = await self._worker_report(run)
        awake = int(report["weights_bytes"]) + int(report["kv_cache_bytes"])
        image = self._image.size_bytes if self._image else 0
        return Footprint(device_awake=awake, host_process=max(0, private - awake), host_image=image)

    async def _check_canary(self, run: _Run) -> None:
        """The first answer is the right one; every later one, of a restart from the image too, must agree with it."""
        body = CANARY_REQUEST | {"model": self._launch.name}
        answer = canary_tokens(await run.http.ask("POST", "/v1/completions", _CONTROL_SECONDS, body))
        if answer != (self._canary or answer):
            raise EngineError(
                f"engine '{self._launch.name}' woke up wrong: it says {answer!r}, it said {self._canary!r}"
            )
        self._canary = answer

    async def _freed(self, run: _Run, held_before: int) -> int:
        """Bytes the system, not the engine, says have come back; raises `EngineError` if they stay away."""
        awake, asleep = self._footprint.device_awake, self._footprint.device_asleep
        wanted = round(_FREED_SHARE * (awake - asleep))
        deadline = asyncio.get_running_loop().time() + _FREED_SECONDS
        while (freed := held_before - self._held_bytes(run)) < wanted:
            if asyncio.get_running_loop().time() > deadline:
                raise EngineError(
                    f"engine '{self._launch.name}' sleeps but freed {freed} bytes, {wanted} were expected"
                )
            await asyncio.sleep(_FREED_POLL_SECONDS)  # the system tells nobody when memory comes back
        return freed

    def _held_bytes(self, run: _Run) -> int:
        return self._device_bytes() if self._launch.platform == "cuda" else private_bytes(run.process.pid)

    async def _worker_report(self, run: _Run) -> dict[str, float]:
        report: dict[str, float] = await self._ask_worker(run, "memory_report", _CONTROL_SECONDS)
        return report

    async def _ask_worker(self, run: _Run, method: str, timeout_seconds: float) -> Any:
        answer = await run.http.ask("POST", "/collective_rpc", timeout_seconds, {"method": method})
        return answer["results"][0]

    async def _notice_loss(self, run: _Run) -> None:
        ending = await self._loss(run)
        self._death = f"engine '{self._launch.name}' {ending}\n{last_lines(self._log)}"
        self._died.set()

    async def _loss(self, run: _Run) -> str:
        """Wait until the process ends, or lives on without doing anything."""
        while not run.process.over.done():
            await asyncio.wait({run.process.over}, timeout=self._launch.pulse_seconds)
            if not run.process.over.done() and not await self._has_pulse(run):
                await asyncio.wait({run.process.over}, timeout=_LAST_BREATH_SECONDS)
                if not run.process.over.done():
                    return f"hangs: its worker did not answer within {self._launch.pulse_timeout_seconds:g} s"
        return _ending(run.process.over.result())

    async def _has_pulse(self, run: _Run) -> bool:
        """Ask the worker itself: vLLM's `/health` is answered even while the process with the weights stands still.

        A move may keep the worker busy for longer, and has a deadline of its own.
        """
        moves = run.moves
        if run.moving:
            return True
        try:
            await self._ask_worker(run, "check_health", self._launch.pulse_timeout_seconds)
        except EngineError:
            return run.moves != moves
        return True

    def _living_run(self) -> _Run:
        if self._run is None or self._run.process.over.done() or self._died.is_set():
            raise EngineDied(f"engine '{self._launch.name}' is not running")
        return self._run

    @property
    def _log(self) -> Path:
        return log_path(self._launch.log_directory, self._launch.name)


@dataclass(slots=True)
class _Run:
    """One life of the engine's process."""

    process: KeptProcess
    http: HttpChannel
    watch: asyncio.Task[None] | None = None
    moving: bool = False
    moves: int = 0  # begun so far

    @contextmanager
    def on_the_move(self) -> Iterator[None]:
        self.moves += 1
        self.moving = True
        try:
            yield
        finally:
            self.moving = False


async def _healthy(run: _Run) -> bool:
    try:
        await run.http.ask("GET", "/health", _CONTROL_SECONDS)
    except EngineError:
        return False
    return True


def _ending(status: int) -> str:
    if status > _SIGNALLED:
        return f"was killed by signal {status - _SIGNALLED}"
    return f"ended with status {status}"
