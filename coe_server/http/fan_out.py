"""Pure: how many answers one request asks for at once. An engine works on each of them, so each of them counts.

Requests without a generated answer (embeddings, ranks, scores, tokens) are one unit of work, with a list of inputs too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import ceil, inf, isnan
from typing import Any

from coe_server.errors import RequestError
from coe_server.http.surfaces import Surface, is_tokens

MOST_INPUTS = 2048  # what OpenAI's API takes in one request for embeddings

# `n` as OpenAI has it, `best_of` of completions, and what llama.cpp calls the same.
_TIMES = ("n", "best_of", "n_cmpl")
_PROMPTS = ("prompt", "prompt_embeds")
_INPUTS = ("input", "documents", "queries", "items", "text_1", "text_2", "data_1", "data_2")


def read_fan_out(surface: Surface, fields: Mapping[str, Any]) -> int:
    """The answers that a body asks for; 1 for most. Raises RequestError for more inputs than one request may have."""
    if not surface.routed:
        _require_few_inputs(fields)
        return 1
    prompts = _entries_of(fields, _PROMPTS) if surface.endpoint == "completions" else 1
    return max(1, prompts) * max(_number(fields.get(name)) for name in _TIMES)


def require_fan_out(asked: int, server_limit: int, key_name: str | None, key_limit: int | None) -> None:
    """Raises RequestError where a request asks for more answers than the server, or its key, allows."""
    meant = f"the request asks for {asked:,} answers at once (n or best_of, times the prompts)"
    if asked > server_limit:
        raise RequestError(f"{meant}; {server_limit:,} are allowed (scheduling.max_fan_out)", "n")
    if key_limit is not None and asked > key_limit:
        raise RequestError(f"{meant}; key '{key_name}' may ask for {key_limit:,}", "n")


def _require_few_inputs(fields: Mapping[str, Any]) -> None:
    for name in _INPUTS:
        number = _entries(fields.get(name))
        if number > MOST_INPUTS:
            raise RequestError(f"{name} has {number:,} entries; {MOST_INPUTS:,} are allowed in one request", name)


def _entries_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return sum(_entries(fields[name]) for name in names if fields.get(name) is not None)


def _entries(value: object) -> int:
    """Of a list how many inputs there are in it; a list of tokens is one, like a text."""
    if isinstance(value, Mapping):  # parts of several kinds, as vLLM takes them for scores
        value = value.get("content")
    return len(value) if isinstance(value, list) and not is_tokens(value) else 1


def _number(value: object) -> int:
    """A count as the most lenient engine reads it: `"4"`, 4.0 and 3.5 as 4; what no engine takes for one is 1."""
    if isinstance(value, int):
        return max(1, value)
    try:
        number = float(value) if isinstance(value, float | str) else 1.0
    except ValueError:
        return 1
    if isnan(number):
        return 1
    return sys.maxsize if number == inf else max(1, ceil(max(number, 1.0)))
