"""One expert's vLLM: a `vllm serve` child on a private Unix socket that starts, sleeps, wakes and stops.

Dependencies on the behaviour of vLLM 0.32 are marked in comments.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from coe_server.engines.cards import Cards
from coe_server.engines.engine import EngineRequest, EngineResponse, Footprint, Seat
from coe_server.engines.log_file import last_lines, log_path
from coe_server.engines.vllm_args import named
from coe_server.engines.vllm_command import VllmLaunch
from coe_server.engines.vllm_memory import VllmMemory
from coe_server.engines.vllm_process import CONTROL_SECONDS, VllmRun
from coe_server.errors import CardLost, EngineDied, EngineError, EngineStartFailed

logger = logging.getLogger(__name__)

# Greedy, with special tokens: even a model with random weights has a definite answer. Four tokens: on a CPU each reads
# all weights, which takes half as long as a wake. No log probabilities: vLLM would compile a kernel for them on the
# first request, for more than half a minute.
CANARY_REQUEST = {
    "prompt": "1 2 3 4",
    "max_tokens": 4,
    "temperature": 0,
    "ignore_eos": True,
    "return_token_ids": True,
}
# A pooling engine answers with numbers, which are compared rounded.
_POOLING_REQUEST = {"input": "1 2 3 4"}
_COMPARED_NUMBERS = 16
_FIRST_CANARY_SECONDS = 300.0  # in eager mode the first answer compiles kernels; the start's own limit also applies
_LONGEST_STEP_TOKENS = 16384  # the largest of vLLM's defaults (engine/arg_utils.py, get_batch_defaults)
_QUOTED_CHARACTERS = 300


class VllmEngine:
    """An `Engine` (see `engine.py`) that runs `vllm serve` as its child.

    `cards`: the GPUs, shared with other engines. On a CPU the memory of the process is measured instead.
    """

    def __init__(self, launch: VllmLaunch, cards: Cards | None = None, seat: Sequence[int] = ()) -> None:
        self._launch = launch
        self._seat = seat  # default of `start`; if empty, the first visible cards
        self._memory = VllmMemory(launch, cards)
        self._run: VllmRun | None = None  # the last run, running or ended
        self._died = asyncio.Event()
        self._death = ""
        self._longest_tokens: int | None = None

    @property
    def footprint(self) -> Footprint:
        return self._memory.footprint

    @property
    def launch(self) -> VllmLaunch:
        return self._launch

    @property
    def measured_footprint(self) -> Footprint | None:
        """The footprint measured by this engine; None before its first start."""
        return self._memory.footprint if self._memory.is_measured else None

    @property
    def longest_tokens(self) -> int | None:
        """As `TellsLength` says; None on a CPU."""
        return self._longest_tokens

    async def start(self, within_seconds: float | None = None, seat: Seat = ()) -> None:
        if self._run is not None:  # a run that died; the new run uses its image
            await _end(self._run, self._memory, at_once=True)
        self._died.clear()
        limit_seconds = self._launch.start_timeout_seconds
        try:
            async with asyncio.timeout(min(limit_seconds, within_seconds or limit_seconds)):
                place = await self._memory.place(seat or self._seat)
                with self._memory.taking():
                    self._run = await VllmRun.start(self._launch, place)
                    await _bring_up(self._run, self._memory)
                self._longest_tokens = self._run.longest_tokens
        except CardLost:
            await self.stop(at_once=True)
            raise
        except (EngineError, OSError) as error:
            try:
                lines = await _last_lines(self._run, self._launch)
            finally:
                await self.stop(at_once=True)
            reason = _reason(error, limit_seconds, within_seconds)
            raise EngineStartFailed(f"engine '{self._launch.name}' did not start: {reason}\n{lines}") from error
        except BaseException:
            await self.stop(at_once=True)
            raise
        self._run.watch = asyncio.create_task(self._notice_loss(self._run))

    async def sleep(self) -> None:
        run = self.running()
        if not self._launch.can_sleep:
            raise EngineError(f"engine '{self._launch.name}' was started without sleep mode and cannot sleep")
        async with _log_quoted(run, self._launch):
            await _sleep(run, self._memory)

    async def wake(self) -> None:
        run = self.running()
        async with _log_quoted(run, self._launch):
            await _wake(run, self._memory)

    async def stop(self, at_once: bool = False) -> None:
        try:
            if self._run is not None:
                await _end(self._run, self._memory, at_once)
        finally:
            await self._memory.close()

    async def died(self) -> str:
        await self._died.wait()
        return self._death

    def send(self, request: EngineRequest) -> AbstractAsyncContextManager[EngineResponse]:
        return self.running().http.send(request)

    def running(self) -> VllmRun:
        """The present run. Raises `EngineDied` if there is none."""
        if self._run is None or self._run.over or self._died.is_set():
            raise EngineDied(f"engine '{self._launch.name}' is not running")
        return self._run

    async def _notice_loss(self, run: VllmRun) -> None:
        ending = await _first([run.loss(), *(image.lost() for image in self._memory.images)])
        self._death = f"engine '{self._launch.name}' {ending}\n{await _last_lines(run, self._launch)}"
        self._died.set()


async def _bring_up(run: VllmRun, memory: VllmMemory) -> None:
    """Wait until a new process answers, write its image and measure its memory."""
    await run.until_healthy()
    await memory.secure_images(run)
    on_gpu = memory.seat is not None
    if on_gpu:
        await _take_longest_step(run)
    await memory.measure(run)
    await _check_canaries(run, memory, _FIRST_CANARY_SECONDS)
    if on_gpu and memory.footprint.can_sleep:
        # On a GPU the first sleep is slow: it pins host memory, which later sleeps reuse. It also shows how much memory
        # stays on the device. Therefore it is done before the engine serves.
        await _sleep(run, memory)
        await _wake(run, memory)


async def _sleep(run: VllmRun, memory: VllmMemory) -> None:
    with run.on_the_move():
        before = await memory.before_sleep(run)
        # Query parameters: vLLM ignores a JSON body and would abort running requests.
        await run.http.ask("POST", "/sleep?level=1&mode=wait", memory.move_seconds)
        await memory.until_freed(run, before)


async def _wake(run: VllmRun, memory: VllmMemory) -> None:
    with run.on_the_move(), memory.taking():
        await run.http.ask("POST", "/wake_up", memory.move_seconds)
        if memory.seat is not None:
            memory.seat.woken()
        await _check_canaries(run, memory, CONTROL_SECONDS)


async def _take_longest_step(run: VllmRun) -> None:
    """Send a prompt that fills one step, so that the measurement includes the memory of steps.

    vLLM frees the memory of its own profiling before it captures graphs (v1/worker/gpu/model_runner.py).
    """
    args, name = named(run.launch.args), run.launch.name
    run.longest_tokens = await _longest_tokens(run)
    logger.info("engine '%s' takes requests of up to %s tokens, answer included", name, run.longest_tokens)
    step = args.get("max_num_batched_tokens")
    step_tokens = step if isinstance(step, int) else _LONGEST_STEP_TOKENS
    tokens = [1] * max(1, min(step_tokens, (run.longest_tokens or step_tokens) - 1))
    path, _ = canary_question(args)
    asked = {"input": tokens} if args.get("runner") == "pooling" else {"prompt": tokens, "max_tokens": 1}
    for copy in range(run.launch.copies):
        await run.http.ask("POST", path, _FIRST_CANARY_SECONDS, asked | {"model": name}, _to_copy(run, copy))


async def _longest_tokens(run: VllmRun) -> int | None:
    answer = await run.http.ask("GET", "/v1/models", CONTROL_SECONDS)
    try:
        return int(answer["data"][0]["max_model_len"])
    except (LookupError, TypeError, ValueError):
        return None


async def _check_canaries(run: VllmRun, memory: VllmMemory, timeout_seconds: float) -> None:
    for copy in range(run.launch.copies):
        memory.check_canary(await _canary(run, copy, timeout_seconds), copy)


async def _canary(run: VllmRun, copy: int, timeout_seconds: float) -> str:
    """The answer to a fixed prompt, which is the same as long as the weights are. Raises `EngineError`."""
    name = run.launch.name
    path, question = canary_question(named(run.launch.args))
    answer = await run.http.ask("POST", path, timeout_seconds, question | {"model": name}, _to_copy(run, copy))
    try:
        return canary_answer(answer)
    except (LookupError, TypeError, AttributeError) as error:
        quoted = str(answer)[:_QUOTED_CHARACTERS]
        raise EngineError(f"engine '{name}' gave no usable answer to its canary\n{quoted}") from error


def _to_copy(run: VllmRun, copy: int) -> tuple[tuple[str, str], ...]:
    """Headers that address one of several copies."""
    return (("X-data-parallel-rank", str(copy)),) if run.launch.copies > 1 else ()


def canary_question(args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path and body of the canary for an engine with these `vllm serve` options."""
    if args.get("runner") == "pooling":
        return "/v1/embeddings", dict(_POOLING_REQUEST)
    return "/v1/completions", dict(CANARY_REQUEST)


def canary_answer(answer: dict[str, Any]) -> str:
    if "data" in answer:
        return str([round(number, 2) for number in answer["data"][0]["embedding"][:_COMPARED_NUMBERS]])
    choice = answer["choices"][0]
    return str(choice.get("token_ids") or choice["text"])


async def _end(run: VllmRun, memory: VllmMemory, at_once: bool) -> None:
    """End a run. A second caller waits for the first; it may be repeated after a cancellation."""
    async with run.one_end:
        if not run.gone:
            await memory.while_it_ends(run, at_once)
            run.gone = True


@asynccontextmanager
async def _log_quoted(run: VllmRun, launch: VllmLaunch) -> AsyncIterator[None]:
    """Add the relevant log lines to an EngineError raised in this context."""
    try:
        yield
    except EngineError as error:
        raise type(error)(f"{error}\n{await _last_lines(run, launch)}") from error


async def _last_lines(run: VllmRun | None, launch: VllmLaunch) -> str:
    """The most relevant lines of the engine's log, up to its last output."""
    if run is not None:
        await run.process.written()
    return last_lines(log_path(launch.log_directory, launch.name))


async def _first(losses: Iterable[Coroutine[None, None, str]]) -> str:
    """The result of the first loss to occur; the other coroutines are cancelled."""
    waiting = [asyncio.create_task(loss) for loss in losses]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return next(loss for loss in waiting if loss in done).result()
    finally:
        for loss in waiting:
            loss.cancel()


def _reason(error: Exception, limit_seconds: float, within_seconds: float | None) -> str:
    if not isinstance(error, TimeoutError):
        return str(error)
    if within_seconds is not None and within_seconds < limit_seconds:
        return f"not up within {within_seconds:.0f} s, far longer than earlier starts"
    return f"not ready after {limit_seconds:g} s (vllm.start_timeout_seconds)"
