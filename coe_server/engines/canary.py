"""A small question with one right answer, which tells whether an engine's weights are what they were. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coe_server.errors import EngineError

# Greedy, special tokens included: even a model of random weights has a definite answer. Four tokens, because on a CPU
# each costs a reading of all weights, as much as half a wake-up. No probabilities: vLLM compiles a kernel for them,
# which takes more than half a minute on the first request.
CANARY_REQUEST = {
    "prompt": "1 2 3 4",
    "max_tokens": 4,
    "temperature": 0,
    "ignore_eos": True,
    "return_token_ids": True,
}
# An engine that embeds has no tokens to give; what it computes is the same to the last bit, but is not asked to be.
_POOLING_REQUEST = {"input": "1 2 3 4"}
_COMPARED_NUMBERS = 16
_QUOTED_CHARACTERS = 300


def canary_question(args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path and body of the question for an engine with these `vllm serve` options."""
    if args.get("runner") == "pooling":
        return "/v1/embeddings", dict(_POOLING_REQUEST)
    return "/v1/completions", dict(CANARY_REQUEST)


def canary_tokens(name: str, answer: Any) -> str:
    """What the engine `name` said to its question, word for word the same as long as the weights are.

    Raises EngineError for an answer that says nothing.
    """
    try:
        return _tokens(answer)
    except (LookupError, TypeError, AttributeError) as error:
        quoted = str(answer)[:_QUOTED_CHARACTERS]
        raise EngineError(f"engine '{name}' gave no answer to its test question\n{quoted}") from error


def _tokens(answer: dict[str, Any]) -> str:
    if "data" in answer:
        return str([round(number, 2) for number in answer["data"][0]["embedding"][:_COMPARED_NUMBERS]])
    choice = answer["choices"][0]
    return str(choice.get("token_ids") or choice["text"])
