"""Two answers to one question: equal but for what differs from one request to the next by its nature. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_OF_THE_MOMENT = frozenset(("id", "created", "created_at", "completed_at", "item_id", "request_id"))
_MADE_UP_ID = re.compile(r"\b(?:chatcmpl|cmpl|resp|msg|call|chatcmpl-tool|embd|score)[-_][0-9a-f-]{8,}\b")

# Of a stream's events: what goes on in the next one, and what each tells anew.
_GOES_ON = {
    str: frozenset(("arguments", "content", "delta", "partial_json", "reasoning", "reasoning_content", "text")),
    list: frozenset(("content", "token_ids")),  # of log-probabilities, of tokens
}
_TOLD_ANEW = frozenset(("sequence_number", "usage"))


def settled(value: Any) -> Any:
    """The value without ids and times, which no two requests share."""
    if isinstance(value, dict):
        return {key: "..." if key in _OF_THE_MOMENT and value[key] else settled(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [settled(one) for one in value]
    return _MADE_UP_ID.sub("...", value) if isinstance(value, str) else value


def joined(answer: Any) -> Any:
    """A stream's events with all that go on where the last one ended as one; anything else as it is.

    vLLM puts the tokens that are ready together into one event, and which are is chance: asked the same 25 times, a
    bare `vllm serve` cut the arguments of a tool call in 16 ways. The order of several choices' events is chance, too.
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
    """The second event does not go on where the first one ended."""


def _choice(event: dict[str, Any]) -> float:
    choices = event.get("choices")
    if not isinstance(choices, list):
        return 0
    return choices[0]["index"] if choices else float("inf")


def _as_one(first: Any, second: Any, key: str = "") -> Any:
    """Raises _Apart."""
    if type(first) is type(second) and key in _GOES_ON.get(type(first), ()):
        return first + second
    if first is None or second is None:
        return second if first is None else first
    if key in _TOLD_ANEW:
        return second
    if isinstance(first, dict) and isinstance(second, dict):
        return {name: _as_one(first.get(name), second.get(name), name) for name in {**first, **second}}
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [_as_one(one, other) for one, other in zip(first, second, strict=True)]
    if first == second:
        return first
    raise _Apart


def refusal(error: Exception) -> dict[str, Any]:
    """What a caller of a client library learns of a refusal. Anything but a refusal is raised: it compares nothing."""
    if not hasattr(error, "status_code"):
        raise error
    return {"raised": type(error).__name__, "status": error.status_code, "body": getattr(error, "body", None)}


def is_refusal(answer: Any) -> bool:
    """Whether an answer, through a library or without one, says no."""
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
