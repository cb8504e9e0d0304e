"""What an OpenAI-compatible endpoint sends back, read without trust. Pure: bytes in, values out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_QUOTED_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Completion:
    """A chat completion's first choice that did not fail; `output_tokens` is None where the endpoint does not count."""

    text: str
    output_tokens: int | None
    finish_reason: str | None


def read_completion(raw: bytes) -> Completion | None:
    """The answer in the body of a 200; None if the body is no chat completion. No content at all is an empty text."""
    try:
        body: Any = json.loads(raw)
        choice = next(one for one in body["choices"] if one.get("finish_reason") != "error")
        text = choice["message"]["content"]
        usage, finish_reason = body.get("usage"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        return None
    if text is not None and not isinstance(text, str):
        return None
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
    return Completion(text or "", tokens if counted else None, str(finish_reason) if finish_reason else None)


def complaint(raw: bytes) -> str:
    """The sentence in an error body of OpenAI's shape, or the body's beginning."""
    try:
        message = json.loads(raw)["error"]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = raw.decode("utf-8", "replace")
    return " ".join(str(message).split())[:_QUOTED_CHARACTERS]
