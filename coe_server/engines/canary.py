"""The canary: a fixed request whose answer stays the same as long as the weights do. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
