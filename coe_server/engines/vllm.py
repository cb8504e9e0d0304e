"""One expert's vLLM: a `vllm serve` child on a private Unix socket that starts, sleeps, wakes and stops.

Knows nothing of the other experts. What vLLM 0.32 does and does not promise is noted where we depend on it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager

from coe_server.engines.canary import canary_question, canary_tokens
from coe_server.engines.engine import EngineRequest, EngineResponse, Footprint
from coe_server.engines.http_channel import HttpChannel
from coe_server.engines.image import WeightImage
from coe_server.engines.log_file import fresh_log, last_lines, log_path
from coe_server.engines.memory import private_bytes, used_device_bytes
from coe_server.engines.vllm_command import VllmLaunch, engine_environment, estimated_footprint, serve_command
from coe_server.engines.vllm_process import CONTROL_SECONDS, KeptProcess, VllmRun, make_run_directory
from coe_server.errors import EngineDied, EngineError, EngineStartFailed

logger = logging.getLogger(__name__)

_FREED_SECONDS = 2.0
_FREED_POLL_SECONDS = 0.01
_FREED_SHARE = 0.9
_SLOWEST_BYTES_PER_SECOND = 0.2e9  # memory that a virtual machine hands out for the first time


class VllmEngine:
    """An `Engine` (see `engine.py`) that runs `vllm serve` as its child.

    `device_bytes` tells how much of the GPU is in use; on a CPU the child's own memory is looked at instead.
    """

    def __init__(self, launch: VllmLaunch, device_bytes: Callable[[], int] = used_device_bytes) -> None:
        self._launch = launch
        self._device_bytes = device_bytes
        self._footprint = estimated_footprint(launch)
        self._weights_and_cache_bytes = self._footprint.device_awake - self._footprint.device_asleep  # all that can go
        self._run: VllmRun | None = None
        self._one_end = asyncio.Lock()  # who stops while a stop is under way waits for its end
        self._image: WeightImage | None = None  # outlives a run that died, not one that was stopped
        self._canary: str | None = None  # what the weights in the image answer
        self._died = asyncio.Event()
        self._death = ""

    @property
    def footprint(self) -> Footprint:
        return self._footprint

    @property
    def _move_seconds(self) -> float:
        """What a sleep, a wake or the writing of the image may take: an engine that stands still then has failed."""
        return self._launch.move_timeout_seconds + self._footprint.device_awake / _SLOWEST_BYTES_PER_SECOND

    async def start(self, within_seconds: float | None = None) -> None:
        await self._end_run(at_once=True)  # what is left of a run that died; its image serves this one
        self._died.clear()
        limit_seconds = self._launch.start_timeout_seconds
        try:
            async with asyncio.timeout(min(limit_seconds, within_seconds or limit_seconds)):
                run = await self._come_up()
        except (EngineError, OSError) as error:
            try:
                lines = await self._last_lines()
            finally:
                await self.stop(at_once=True)
            reason = _in_words(error, limit_seconds, within_seconds)
            raise EngineStartFailed(f"engine '{self._launch.name}' did not start: {reason}\n{lines}") from error
        except BaseException:
            await self.stop(at_once=True)
            raise
        run.watch = asyncio.create_task(self._notice_loss(run))

    async def sleep(self) -> None:
        run = self._living_run()
        if not self._launch.can_sleep:
            raise EngineError(f"engine '{self._launch.name}' was started without the means to sleep")
        async with self._log_quoted():
            await self._fall_asleep(run)

    async def wake(self) -> None:
        run = self._living_run()
        async with self._log_quoted():
            await self._get_up(run)

    async def stop(self, at_once: bool = False) -> None:
        try:
            await self._end_run(at_once)
        finally:
            image, self._image, self._canary = self._image, None, None
            if image is not None:
                await image.close()

    async def died(self) -> str:
        await self._died.wait()
        return self._death

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[EngineResponse]:
        async with self._living_run().http.send(request) as response:
            yield response

    async def memory_report(self) -> dict[str, float]:
        """The sleeping worker's own account (CPU only): exact bytes, image writes, seconds of the last moves."""
        report: dict[str, float] = await self._living_run().ask_worker("memory_report")
        return report

    async def _come_up(self) -> VllmRun:
        run = self._run = await self._launched()
        await run.until_healthy()
        await self._secure_image(run)
        self._footprint = await self._measured(run)
        await self._check_canary(run)
        if self._launch.platform == "cuda" and self._launch.can_sleep:
            await self._rehearse(run)
        return run

    async def _rehearse(self, run: VllmRun) -> None:
        """On a GPU the first sleep is the slow one (it pins host memory for the weights; later ones use it again) and
        tells what stays on the device: it is done before anybody is served."""
        await self._fall_asleep(run)
        await self._get_up(run)

    async def _get_up(self, run: VllmRun) -> None:
        with run.on_the_move():
            await run.http.ask("POST", "/wake_up", self._move_seconds)
            await self._check_canary(run)

    async def _fall_asleep(self, run: VllmRun) -> None:
        with run.on_the_move():
            held_bytes = self._held_bytes(run)
            # Query parameters: vLLM silently ignores a JSON body and then aborts what is still running.
            await run.http.ask("POST", "/sleep?level=1&mode=wait", self._move_seconds)
            freed_bytes = await self._freed(run, held_bytes)
        if self._launch.platform == "cuda":
            asleep = max(0, self._footprint.device_awake - freed_bytes)
            self._footprint = self._footprint._replace(device_asleep=asleep)

    async def _end_run(self, at_once: bool) -> None:
        async with self._one_end:
            if (run := self._run) is not None:
                await run.end(at_once)
                if self._launch.platform == "cuda":
                    await self._device_given_back(run)
                self._run = None

    async def _launched(self) -> VllmRun:
        """The child's process and its channel, with an image at hand; answering comes later."""
        launch = self._launch
        bytes_before = self._device_bytes() if launch.platform == "cuda" else 0
        run_directory = make_run_directory(launch.user)
        socket = run_directory / "engine.sock"
        try:
            image_path = await self._image_path()
            process = await KeptProcess.start(
                serve_command(launch, socket),
                engine_environment(launch, run_directory, image_path),
                run_directory,
                fresh_log(launch.log_directory, launch.name),
                launch.user,
            )
        except BaseException:
            shutil.rmtree(run_directory, ignore_errors=True)
            raise
        return VllmRun(launch, process, HttpChannel(launch.name, "http://engine", socket), bytes_before)

    async def _image_path(self) -> str | None:
        """Of the image that an earlier run left, else of an empty one; None where the engine has no use for one."""
        if self._image is not None and self._image.over:
            self._image = None  # lost: the next one is written from the files
        if self._image is None and self._launch.can_sleep and self._launch.platform == "cpu":
            self._image = await WeightImage.held(self._launch.name, self._launch.user)
        return self._image.path if self._image else None

    async def _secure_image(self, run: VllmRun) -> None:
        """Have the image written now, so that no sleep has to; or know that the engine was loaded from it."""
        if self._image is None:
            return
        report = await run.ask_worker("memory_report")
        if not report["loaded_from_image"]:
            self._canary = None
            if (await self._image.state()).sealed:  # the worker found a reason not to trust it
                await self._image.renew()
            await run.ask_worker("write_image", self._move_seconds)
        if not (await self._image.state()).sealed:
            raise EngineError(f"engine '{self._launch.name}' left its image open to changes")

    async def _measured(self, run: VllmRun) -> Footprint:
        private = private_bytes(run.process.pid)
        if self._launch.platform == "cuda":
            awake = max(0, self._device_bytes() - run.device_bytes_before)
            return self._footprint._replace(device_awake=awake, host_process=private)
        report = await run.ask_worker("memory_report")
        awake = int(report["weights_bytes"]) + int(report["kv_cache_bytes"])
        image_bytes = (await self._image.state()).size_bytes if self._image else 0
        return Footprint(device_awake=awake, host_process=max(0, private - awake), host_image=image_bytes)

    async def _check_canary(self, run: VllmRun) -> None:
        """The first answer is the right one; every later one, of a restart from the image too, must agree with it."""
        path, question = canary_question(self._launch.args)
        body = question | {"model": self._launch.name}
        answer = canary_tokens(self._launch.name, await run.http.ask("POST", path, CONTROL_SECONDS, body))
        if answer != (self._canary or answer):
            raise EngineError(
                f"engine '{self._launch.name}' woke up wrong: it says {answer!r}, it said {self._canary!r}"
            )
        self._canary = answer

    async def _freed(self, run: VllmRun, held_before: int) -> int:
        """Bytes the system, not the engine, says have come back; raises `EngineError` if they stay away."""
        moving = self._footprint.device_awake - self._footprint.device_asleep
        if self._launch.platform == "cuda":  # before the first sleep it is an estimate what stays: graphs may be large
            moving = max(min(moving, self._weights_and_cache_bytes), self._launch.kv_cache_bytes)
        wanted = round(_FREED_SHARE * moving)
        freed = await _at_least(wanted, lambda: held_before - self._held_bytes(run))
        if freed < wanted:
            raise EngineError(f"engine '{self._launch.name}' sleeps but freed {freed} bytes, {wanted} were expected")
        return freed

    async def _device_given_back(self, run: VllmRun) -> None:
        """The driver may take a moment after the last process has ended; what it keeps cannot be ours any more."""
        allowed = run.device_bytes_before + round((1 - _FREED_SHARE) * self._footprint.device_awake)
        try:
            missing = -await _at_least(0, lambda: allowed - self._device_bytes())
        except EngineError as error:
            logger.warning("engine '%s' has ended, unseen by the driver: %s", self._launch.name, error)
            return
        if missing > 0:
            logger.warning(
                "engine '%s' has ended and the device holds %d bytes more than it may", self._launch.name, missing
            )

    def _held_bytes(self, run: VllmRun) -> int:
        return self._device_bytes() if self._launch.platform == "cuda" else private_bytes(run.process.pid)

    async def _notice_loss(self, run: VllmRun) -> None:
        ending = await _first([run.loss(), *([self._image.lost()] if self._image else [])])
        self._death = f"engine '{self._launch.name}' {ending}\n{await self._last_lines()}"
        self._died.set()

    def _living_run(self) -> VllmRun:
        if self._run is None or self._run.over or self._died.is_set():
            raise EngineDied(f"engine '{self._launch.name}' is not running")
        return self._run

    @asynccontextmanager
    async def _log_quoted(self) -> AsyncIterator[None]:
        """What goes wrong is told with the last telling lines of the engine's log."""
        try:
            yield
        except EngineError as error:
            raise type(error)(f"{error}\n{await self._last_lines()}") from error

    async def _last_lines(self) -> str:
        """What tells most in the engine's log, its last words included."""
        if self._run is not None:
            await self._run.process.written()
        return last_lines(log_path(self._launch.log_directory, self._launch.name))


async def _first(losses: Iterable[Coroutine[None, None, str]]) -> str:
    """What the first of them to come tells; the others are no longer waited for."""
    waiting = [asyncio.create_task(loss) for loss in losses]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return next(loss for loss in waiting if loss in done).result()
    finally:
        for loss in waiting:
            loss.cancel()


def _in_words(error: Exception, limit_seconds: float, within_seconds: float | None) -> str:
    if not isinstance(error, TimeoutError):
        return str(error)
    if within_seconds is not None and within_seconds < limit_seconds:
        return f"not up within {within_seconds:.0f} s, far longer than its starts have taken"
    return f"not ready after {limit_seconds:g} s (vllm.start_timeout_seconds)"


async def _at_least(wanted: int, size_bytes: Callable[[], int]) -> int:
    """The first reading that is enough, or the last one within the time that memory may take to come back."""
    now = asyncio.get_running_loop().time
    deadline = now() + _FREED_SECONDS
    while True:
        seen = size_bytes()
        if seen >= wanted or now() > deadline:
            return seen
        await asyncio.sleep(_FREED_POLL_SECONDS)  # the system tells nobody when memory comes back
