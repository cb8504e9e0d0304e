"""The adapters of one running vLLM: what each must answer, and whether it does before its first request is sent.

An adapter that is lost (its matrices are zero after a wake) answers as its base, with status 200. So prompts are looked
for, at the start, to which the two answer differently.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from coe_server.engines.adapter import Adapter, stamp_of
from coe_server.engines.engine import EngineRequest
from coe_server.engines.vllm.command import VllmLaunch
from coe_server.engines.vllm.process import CONTROL_SECONDS, VllmRun
from coe_server.errors import EngineDied, EngineError

logger = logging.getLogger(__name__)

# Short: vLLM's prefix cache, which may outlive an adapter's matrices, has whole blocks of 16 tokens or more.
PROBES = (
    *("1 2 3 4", "The", "Write a", "In the year", "SELECT", "Hello, how are you?", "def f(x):", "Question: why"),
    *("A:", "\n\n", "Yes", "Translate this: a day"),
)
PROBE_TOKENS = 8
_WANTED_PROBES = 2  # batches differ in rounding, so one answer may turn at a near tie
_FIRST_PROBE_SECONDS = 300.0  # in eager mode the first request with an adapter compiles kernels

Tokens = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """Answers to one prompt, up to the first token in which the adapter's differs from its base's."""

    prompt: str
    right: Tokens
    base: Tokens

    def shows(self, answer: Sequence[str]) -> bool | None:
        """True for the adapter's answer, False for its base's, None if it is neither."""
        like_right, like_base = _common(answer, self.right), _common(answer, self.base)
        return None if like_right == like_base else like_right > like_base


def reference(prompt: str, right: Tokens, base: Tokens) -> Reference | None:
    """None if both answer alike."""
    length = _common(right, base) + 1
    return None if right == base else Reference(prompt, right[:length], base[:length])


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class VllmAdapters:
    """The adapters of one engine over all its runs. Its owner calls `begin` and `doubt` between requests.

    What was learned outlives a stop: an adapter that is lost after a new start must not be learned as its base.
    """

    def __init__(self, adapters: Iterable[Adapter]) -> None:
        self._known = {one.name: one for one in adapters}
        self._references: dict[str, tuple[Reference, ...]] = {}
        self._stamps: dict[str, str] = {}  # of the files that the references were learned with
        self._base_answers: dict[str, Tokens] = {}  # by prompt
        self._proven: set[str] = set()  # in this run, since its last wake
        self._restarted_for: set[str] = set()
        self._hopeless: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._lost = asyncio.Event()
        self._loss = ""

    def __contains__(self, name: str) -> bool:
        return name in self._known

    async def begin(self, run: VllmRun) -> None:
        """A new run: learn what is not known of its adapters. Raises `EngineError`."""
        self._lost.clear()
        self._hopeless.clear()
        self.doubt()
        if await self._base_is_another(run):
            self._forget()
        for one in self._known.values():
            if one.name not in self._references or self._stamps[one.name] != stamp_of(one.folder):
                await self._learn(run, one)

    def doubt(self) -> None:
        """The engine woke up: no adapter is known to be there."""
        self._proven.clear()

    async def prove(self, run: VllmRun, name: str) -> None:
        """Return once the adapter has answered its canary rightly in this run, since its last wake.

        A wrong answer has it loaded again; if that does not help, the engine is lost and starts anew. Raises
        `EngineDied` then, and `EngineError` for an adapter that not even a new start has brought back.
        """
        if name in self._proven or name not in self._known:
            return
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name not in self._proven:
                await self._prove(run, self._known[name])

    async def lost(self) -> str:
        """Wait until only a new start can bring an adapter back. Returns why."""
        await self._lost.wait()
        return self._loss

    async def load(self, run: VllmRun, adapter: Adapter) -> None:
        """Have the awake engine take a further adapter, and learn its answers.

        Raises EngineError if the engine refuses; then only a new start can take it.
        """
        self._known[adapter.name] = adapter
        try:
            await _load(run, adapter)
            await self._learn(run, adapter)
        except EngineError:
            await self.unload(run, adapter.name)
            raise

    async def unload(self, run: VllmRun | None, name: str) -> None:
        """Take an adapter away; `run` is None if the engine does not run."""
        self._known.pop(name, None)
        self._references.pop(name, None)
        for names in (self._proven, self._restarted_for, self._hopeless):
            names.discard(name)
        if run is not None:
            try:
                await _command(run, "/v1/unload_lora_adapter", {"lora_name": name})
            except EngineError as error:
                logger.info("adapter '%s' was not loaded: %s", name, error)

    async def _base_is_another(self, run: VllmRun) -> bool:
        """True if most of its answers are not as they were: rounding turns few."""
        told = tuple(self._base_answers.items())
        same = sum([await _answer(run, run.launch.name, prompt) == answer for prompt, answer in told])
        return 2 * same < len(told)

    def _forget(self) -> None:
        for known in (self._references, self._stamps, self._base_answers):
            known.clear()
        self._restarted_for.clear()

    async def _prove(self, run: VllmRun, adapter: Adapter) -> None:
        name = adapter.name
        if name in self._hopeless:
            raise _stays_wrong(name)
        if not await self._answers_rightly(run, name):
            logger.warning("adapter '%s' of '%s' is lost in the engine; it is loaded again", name, run.launch.name)
            try:
                await _load(run, adapter)
                is_back = await self._answers_rightly(run, name)
            except EngineDied:
                raise
            except EngineError as error:
                logger.warning("adapter '%s': %s", name, error)
                is_back = False
            if not is_back:
                self._give_up(run, name)
        self._restarted_for.discard(name)
        self._proven.add(name)

    def _give_up(self, run: VllmRun, name: str) -> None:
        """Have the engine started anew, once for each loss: one broken adapter must not keep its base busy."""
        if name in self._restarted_for:
            self._hopeless.add(name)
            error = _stays_wrong(name)
            logger.error("%s", error)
            raise error
        self._restarted_for.add(name)
        self._loss = f"lost adapter '{name}' and did not get it back by loading it again"
        self._lost.set()
        raise EngineDied(f"engine '{run.launch.name}' {self._loss}; it starts anew")

    async def _answers_rightly(self, run: VllmRun, name: str) -> bool:
        """False also if it is unknown to the engine, which then answers with an error."""
        try:
            for copy in range(run.launch.copies):
                verdicts = [await self._verdict(run, name, one, copy) for one in self._references.get(name, ())]
                if verdicts and (False in verdicts or True not in verdicts):
                    return False
        except EngineDied:
            raise
        except EngineError as error:
            logger.warning("adapter '%s': %s", name, error)
            return False
        return True

    async def _verdict(self, run: VllmRun, name: str, known: Reference, copy: int) -> bool | None:
        return known.shows(await _answer(run, name, known.prompt, len(known.right), copy))

    async def _learn(self, run: VllmRun, adapter: Adapter) -> None:
        """Find prompts to which it does not answer as its base."""
        name = adapter.name
        stamp, found = stamp_of(adapter.folder), list[Reference]()
        for prompt in PROBES:
            if prompt not in self._base_answers:
                self._base_answers[prompt] = await _answer(run, run.launch.name, prompt)
            told = await _answer(run, name, prompt)
            if (one := reference(prompt, told, self._base_answers[prompt])) is not None:
                found.append(one)
            if len(found) == _WANTED_PROBES:
                break
        if not found:
            logger.warning(
                "adapter '%s' answers %d test prompts as its base '%s' does: the engine could lose it unseen",
                *(name, len(PROBES), run.launch.name),
            )
        self._references[name], self._stamps[name] = tuple(found), stamp
        self._hopeless.discard(name)
        self._restarted_for.discard(name)
        self._proven.add(name)


def _stays_wrong(name: str) -> EngineError:
    error = EngineError(
        f"adapter '{name}' answers its canary wrongly, also after its base was started anew; its base and the other"
        " adapters are served"
    )
    error.backs_off = "never"  # its base is well
    return error


async def _answer(run: VllmRun, model: str, prompt: str, tokens: int = PROBE_TOKENS, copy: int = 0) -> Tokens:
    """The greedy answer of a model's name to a prompt. Raises `EngineError`."""
    asked = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = await run.http.ask(
        "POST", "/v1/completions", _FIRST_PROBE_SECONDS, asked | {"return_token_ids": True}, to_copy(run.launch, copy)
    )
    try:
        choice = answer["choices"][0]
        return tuple(map(str, choice.get("token_ids") or choice["text"]))
    except (LookupError, TypeError, AttributeError) as error:
        raise EngineError(f"engine '{run.launch.name}' gave no usable answer as '{model}'") from error


def to_copy(launch: VllmLaunch, copy: int) -> tuple[tuple[str, str], ...]:
    """Headers that address one of several copies."""
    return (("X-data-parallel-rank", str(copy)),) if launch.copies > 1 else ()


async def _load(run: VllmRun, adapter: Adapter) -> None:
    """Load it, after what is left of it: under a new number, so that no cached prefix of the old one is used."""
    try:
        await _command(run, "/v1/unload_lora_adapter", {"lora_name": adapter.name})
    except EngineDied:
        raise
    except EngineError:  # it was not there
        pass
    await _command(run, "/v1/load_lora_adapter", {"lora_name": adapter.name, "lora_path": str(adapter.folder)})


async def _command(run: VllmRun, path: str, payload: dict[str, object]) -> None:
    """A control call that is answered with a sentence, not with JSON. Raises `EngineError`."""
    headers = (("content-type", "application/json"),)
    request = EngineRequest("POST", path, headers, json.dumps(payload).encode())
    try:
        async with asyncio.timeout(CONTROL_SECONDS), run.http.send(request) as response:
            said = b"".join([chunk async for chunk in response.chunks()])
    except TimeoutError as error:
        raise EngineError(f"engine '{run.launch.name}' did not answer {path} within {CONTROL_SECONDS:g} s") from error
    if response.status != 200:
        quoted = said[:300].decode(errors="replace")
        raise EngineError(f"engine '{run.launch.name}' answered {path} with {response.status}\n{quoted}")
