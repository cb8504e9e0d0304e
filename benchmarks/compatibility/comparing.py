"""Compares two answers to one request, without what differs between any two requests, such as ids and times. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_OF_THE_MOMENT = frozenset(("id", "created", "created_at", "completed_at", "item_id", "request_id", "timings"))
_MADE_UP_ID = re.compile(r"\b(?:chatcmpl|cmpl|resp|msg|call|chatcmpl-tool|embd|score)[-_][0-9a-f-]{8,}\b")

# Fields of a stream's events: those that continue in the next event, and those that each event replaces.
_CONTINUED = {
    str: frozenset(("arguments", "content", "delta", "partial_json", "reasoning", "reasoning_content", "text")),
    list: frozenset(("content", "token_ids")),  # log-probabilities, tokens
}
_REPLACED = frozenset(("sequence_number", "usage"))


def settled(value: Any) -> Any:
    """The value without ids and times, which no two requests share."""
    if isinstance(value, dict):
        return {key: "..." if key in _OF_THE_MOMENT and value[key] else settled(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [settled(one) for one in value]
    return _MADE_UP_ID.sub("...", value) if isinstance(value, str) else value


def joined(answer: Any) -> Any:
    """A stream's events, those that continue each other merged; any other answer unchanged.

    vLLM puts all tokens that are ready into one event, so events are cut at random: in 25 equal requests, a bare
    `vllm serve` cut the arguments of a tool call in 16 ways. The order of events of several choices is random, too.
    """
    if not isinstance(answer, list) or not all(isinstance(event, dict) for event in answer):
        return answer
    events: list[Any] = []
    for event in sorted(answer, key=_choice):
        try:
            events = [*events[:-1], _as_one(events[-1], event)] if events else [event]
        except _Apart:
            events.append(event)
    return events


class _Apart(Exception):
    """The second event does not continue the first."""


def _choice(event: dict[str, Any]) -> float:
    choices = event.get("choices")
    if not isinstance(choices, list):
        return 0
    return choices[0]["index"] if choices else float("inf")


def _as_one(first: Any, second: Any, key: str = "") -> Any:
    """The two events merged into one. Raises _Apart if the second does not continue the first."""
    if type(first) is type(second) and key in _CONTINUED.get(type(first), ()):
        return first + second
    if first is None or second is None:
        return second if first is None else first
    if key in _REPLACED:
        return second
    if isinstance(first, dict) and isinstance(second, dict):
        return {name: _as_one(first.get(name), second.get(name), name) for name in {**first, **second}}
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [_as_one(one, other) for one, other in zip(first, second, strict=True)]
    if first == second:
        return first
    raise _Apart


def refusal(error: Exception) -> dict[str, Any]:
    """The refusal as a client library reports it: exception, status and body. Raises every other exception again."""
    if not hasattr(error, "status_code"):
        raise error
    return {"raised": type(error).__name__, "status": error.status_code, "body": getattr(error, "body", None)}


def is_refusal(answer: Any) -> bool:
    """True if the answer, through a client library or not, is a refusal."""
    if isinstance(answer, dict):
        return "raised" in answer or (isinstance(answer.get("status"), int) and answer["status"] >= 400)
    return isinstance(answer, list) and bool(answer) and isinstance(answer[0], int) and answer[0] >= 400


def differences(ours: Any, bare: Any, path: str = "") -> Iterator[str]:
    """Every place where two settled values differ."""
    if isinstance(ours, dict) and isinstance(bare, dict):
        for key in sorted(ours.keys() | bare.keys(), key=str):
            if key not in ours or key not in bare:
                yield f"{path}.{key} only {'with us' if key in ours else 'bare'}"
            else:
                yield from differences(ours[key], bare[key], f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(bare, list) and len(ours) == len(bare):
        for place, (one, other) in enumerate(zip(ours, bare, strict=True)):
            yield from differences(one, other, f"{path}[{place}]")
    elif ours != bare:
        yield f"{path}: {_short(ours)} with us, {_short(bare)} bare"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 90 else text[:87] + "..."
