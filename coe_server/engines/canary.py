"""A small question with one right answer, which tells whether an engine's weights are what they were. Pure."""

from __future__ import annotations

from typing import Any

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


def canary_tokens(answer: dict[str, Any]) -> str:
    """What `/v1/completions` said to `CANARY_REQUEST`, word for word the same as long as the weights are."""
    choice = answer["choices"][0]
    return str(choice.get("token_ids") or choice["text"])
