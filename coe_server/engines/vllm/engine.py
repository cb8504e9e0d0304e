"""One expert's vLLM: a `vllm serve` child on a private Unix socket that starts, sleeps, wakes and stops.

Dependencies on the behaviour of vLLM 0.32 are marked in comments.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

from coe_server.engines.adapter import Adapter
from coe_server.engines.canary import canary_answer, canary_question
from coe_server.engines.cards import Cards
from coe_server.engines.engine import Download, EngineRequest, EngineResponse, Footprint
from coe_server.engines.model_size import unfinished_bytes
from coe_server.engines.process_engine import ProcessEngine
from coe_server.engines.vllm.adapter_args import AdapterRoom, room_of
from coe_server.engines.vllm.adapter_canaries import to_copy
from coe_server.engines.vllm.adapters import VllmAdapters
from coe_server.engines.vllm.args import named
from coe_server.engines.vllm.command import VllmLaunch, hub_source
from coe_server.engines.vllm.memory import VllmMemory
from coe_server.engines.vllm.run import CONTROL_SECONDS, VllmRun
from coe_server.errors import EngineError

logger = logging.getLogger(__name__)

_FIRST_CANARY_SECONDS = 300.0  # in eager mode the first answer compiles kernels; the start's own limit also applies
_LONGEST_STEP_TOKENS = 16384  # the largest of vLLM's defaults (engine/arg_utils.py, get_batch_defaults)
_QUOTED_CHARACTERS = 300


class VllmEngine(ProcessEngine[VllmRun]):
    """An `Engine` (see `engine.py`) that runs `vllm serve` as its child.

    `cards`: the GPUs, shared with other engines. On a CPU the memory of the process is measured instead.
    """

    def __init__(self, launch: VllmLaunch, cards: Cards | None = None, seat: Sequence[int] = ()) -> None:
        """`seat` is the default of `start`; if empty, the first visible cards."""
        super().__init__(launch.name, launch.log_directory, launch.start_timeout_seconds, tuple(seat))
        self.launch = launch
        self.longest_tokens: int | None = None  # as `TellsLength` says; None on a CPU
        self._memory = VllmMemory(launch, cards)
        self._adapters = VllmAdapters(launch.adapters)

    @property
    def footprint(self) -> Footprint:
        return self._memory.footprint

    @property
    def measured_footprint(self) -> Footprint | None:
        """The footprint measured by this engine; None before its first start."""
        return self._memory.footprint if self._memory.is_measured else None

    def download(self) -> Download | None:
        source = hub_source(self.launch)
        done = unfinished_bytes(source.model, source.environment)
        return None if done is None else Download(done, self.launch.weights_bytes)

    def _secrets(self) -> Iterable[str]:
        return [value for name, value in self.launch.inherited.items() if name.endswith("_TOKEN")]

    async def _bring_up(self) -> None:
        place = await self._memory.place(self._seat)
        launch = replace(self.launch, adapters=self._adapters.there.seen(self.launch.adapters))
        with self._memory.taking():
            self._run = await VllmRun.start(launch, place)
            await _bring_up(self._run, self._memory, self._adapters)
        self.longest_tokens = self._run.longest_tokens

    async def _end(self, run: VllmRun, at_once: bool) -> None:
        """End a run; its images stay for the next one. It may be repeated after a cancellation."""
        async with run.one_end:
            if not run.gone:
                await self._memory.while_it_ends(run, at_once)
                run.gone = True

    async def _loss(self, run: VllmRun) -> str:
        return await _first([run.loss(), self._adapters.lost(), *(image.lost() for image in self._memory.images)])

    async def sleep(self) -> None:
        run = self.running()
        if not self.launch.can_sleep:
            raise EngineError(f"engine '{self._name}' was started without sleep mode and cannot sleep")
        async with self._log_quoted():
            await _sleep(run, self._memory)

    async def wake(self) -> None:
        run = self.running()
        async with self._log_quoted():
            await _wake(run, self._memory)
        self._adapters.doubt()

    async def stop(self, at_once: bool = False) -> None:
        try:
            await super().stop(at_once)
        finally:
            await self._memory.close()

    def send(self, request: EngineRequest) -> AbstractAsyncContextManager[EngineResponse]:
        run = self.running()
        if request.model in self._adapters.there or self._adapters.there.to_unload:
            return _proven(self._adapters, run, request)
        return run.http.send(request)

    @property
    def adapter_room(self) -> AdapterRoom | None:
        """For which adapters it was started; None if for none."""
        return room_of(self.launch.args, self.launch.adapters)

    def take_adapters(self, adapters: tuple[Adapter, ...]) -> None:
        """Answer under exactly these adapters' names from now on, and after each start; they must fit `adapter_room`.

        A new one is loaded at its first request; one that goes is unloaded once its requests are answered.
        """
        room = self.adapter_room
        assert room is not None, "the caller has seen that it takes adapters"
        assert room.why_not(adapters) is None, "the caller has seen that they fit"
        self.launch = replace(self.launch, args={**self.launch.args, **room.as_args}, adapters=adapters)
        self._adapters.take(adapters)


@asynccontextmanager
async def _proven(adapters: VllmAdapters, run: VllmRun, request: EngineRequest) -> AsyncIterator[EngineResponse]:
    """Send a request to an adapter that has shown to be there."""
    async with adapters.asked(run, request.model), run.http.send(request) as response:
        yield response


async def _bring_up(run: VllmRun, memory: VllmMemory, adapters: VllmAdapters | None = None) -> None:
    """Wait until a new process answers, write its image, measure its memory, and learn its adapters' answers."""
    await run.until_healthy()
    await memory.secure_images(run)
    on_gpu = memory.seat is not None
    if on_gpu:
        await _take_longest_step(run)
    await memory.measure(run)
    await _check_canaries(run, memory, _FIRST_CANARY_SECONDS)
    if adapters is not None:
        await adapters.begin(run)
    if on_gpu and memory.footprint.can_sleep:
        # On a GPU the first sleep is slow: it pins host memory, which later sleeps reuse. It also shows how much memory
        # stays on the device. Therefore it is done before the engine serves.
        await _sleep(run, memory)
        await _wake(run, memory)
        if adapters is not None:
            adapters.doubt()


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
        await run.http.ask("POST", path, _FIRST_CANARY_SECONDS, asked | {"model": name}, to_copy(run.launch, copy))


async def _longest_tokens(run: VllmRun) -> int | None:
    answer = await run.http.ask("GET", "/v1/models", CONTROL_SECONDS)
    try:
        return int(answer["data"][0]["max_model_len"])
    except (LookupError, TypeError, ValueError):
        return None


async def _check_canaries(run: VllmRun, memory: VllmMemory, timeout_seconds: float) -> None:
    for copy in range(run.launch.copies):
        memory.first_answers.check(await _canary(run, copy, timeout_seconds), copy)


async def _canary(run: VllmRun, copy: int, timeout_seconds: float) -> str:
    """The answer to a fixed prompt, which is the same as long as the weights are. Raises `EngineError`."""
    name = run.launch.name
    path, question = canary_question(named(run.launch.args))
    answer = await run.http.ask("POST", path, timeout_seconds, question | {"model": name}, to_copy(run.launch, copy))
    try:
        return canary_answer(answer)
    except (LookupError, TypeError, AttributeError) as error:
        quoted = str(answer)[:_QUOTED_CHARACTERS]
        raise EngineError(f"engine '{name}' gave no usable answer to its canary\n{quoted}") from error


async def _first(losses: Iterable[Coroutine[None, None, str]]) -> str:
    """The result of the first loss to occur; the other coroutines are cancelled."""
    waiting = [asyncio.create_task(loss) for loss in losses]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return next(loss for loss in waiting if loss in done).result()
    finally:
        for loss in waiting:
            loss.cancel()
