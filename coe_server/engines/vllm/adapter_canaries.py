"""What the adapters of one engine must answer: test prompts, and the answers in which they part from their base.

An adapter that is lost (its matrices are zero after a wake) answers as its base, with status 200. So prompts are looked
for, at the start, to which the two answer differently.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from coe_server.engines.adapter import Adapter, stamp_of
from coe_server.engines.vllm.command import VllmLaunch
from coe_server.engines.vllm.run import VllmRun
from coe_server.errors import EngineError

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


class AdapterCanaries:
    """Outlives stops: an adapter that is lost after a new start must not be learned as its base."""

    def __init__(self) -> None:
        self._references: dict[str, tuple[Reference, ...]] = {}
        self._stamps: dict[str, str] = {}  # of the files that the references were learned with
        self._base_answers: dict[str, Tokens] = {}  # by prompt

    def knows(self, adapter: Adapter) -> bool:
        """True if its answers were learned, and its files are still those."""
        return self._stamps.get(adapter.name) == stamp_of(adapter.folder)

    async def base_is_another(self, run: VllmRun) -> bool:
        """True if most answers of the base are not as they were: rounding turns few."""
        told = tuple(self._base_answers.items())
        same = sum([await _answer(run, run.launch.name, prompt) == answer for prompt, answer in told])
        return 2 * same < len(told)

    def forget(self) -> None:
        for known in (self._references, self._stamps, self._base_answers):
            known.clear()

    async def learn(self, run: VllmRun, adapter: Adapter) -> None:
        """Find prompts to which it does not answer as its base. Raises `EngineError`."""
        name, stamp, found = adapter.name, stamp_of(adapter.folder), list[Reference]()
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

    async def answers_rightly(self, run: VllmRun, name: str) -> bool:
        """False for its base's answers, and for those that are neither's. Raises `EngineError`."""
        known = self._references.get(name, ())
        for copy in range(run.launch.copies if known else 0):
            shown = [one.shows(await _answer(run, name, one.prompt, tokens=len(one.right), copy=copy)) for one in known]
            if False in shown or True not in shown:
                return False
        return True


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
