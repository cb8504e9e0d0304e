"""The canary: a fixed request whose answer stays the same as long as the weights do, and the first one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coe_server.errors import EngineError

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


class FirstAnswers:
    """The first answer of each copy of an engine's weights: later ones are the same, also after a restart."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._first: dict[int, str] = {}

    def check(self, answer: str, copy: int = 0) -> None:
        """Store the first answer as correct. Raise EngineError if a later one differs."""
        first = self._first.setdefault(copy, answer)
        if answer != first:
            raise EngineError(f"engine '{self._engine}' answers its canary wrongly: {answer!r} now, {first!r} at first")

    def forget(self) -> None:
        """The weights are read anew."""
        self._first.clear()
