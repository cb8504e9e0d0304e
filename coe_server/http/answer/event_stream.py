"""Server-sent events as bytes: where one ends, whether the answer has begun in it, whether it is an error. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

LONGEST_HELD_BYTES = 1 << 20  # of an event whose end has not come yet
_END = re.compile(rb"\r?\n\r?\n")
# What OpenAI's responses and Anthropic's messages say before the first word of an answer.
_OPENING_KINDS = frozenset(
    (
        *("response.created", "response.queued", "response.in_progress", "response.output_item.added"),
        *("response.content_part.added", "message_start", "content_block_start", "ping"),
    )
)


class EventCutter:
    """Gives whole events, byte for byte as they came; holds back the beginning of one that is not whole yet."""

    def __init__(self) -> None:
        self.rest = b""

    def whole_events(self, chunk: bytes) -> list[bytes]:
        data = self.rest + chunk
        events, start = [], 0
        for match in _END.finditer(data):
            events.append(data[start : match.end()])
            start = match.end()
        self.rest = data[start:]
        if len(self.rest) > LONGEST_HELD_BYTES:
            events.append(self.rest)
            self.rest = b""
        return events


def is_opening(event: bytes) -> bool:
    """Whether an event comes before the first word of an answer: another expert may still answer instead."""
    payload = payload_of(event)
    if payload is None:
        return True  # a comment
    if payload.get("type") in _OPENING_KINDS:
        return True
    choices = payload.get("choices")
    return isinstance(choices, list) and bool(choices) and all(_says_nothing(choice) for choice in choices)


def error_of(event: bytes) -> dict[str, Any] | None:
    """The error an event tells of, or None. vLLM tells so, under HTTP 200, of an engine that died mid-answer."""
    if b'"error"' not in event:
        return None
    payload = payload_of(event) or {}
    error = payload.get("error")
    return error if isinstance(error, dict) and "choices" not in payload else None


def payload_of(event: bytes) -> dict[str, Any] | None:
    """The JSON object of an event's data, or None."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    try:
        payload = json.loads(b"\n".join(lines))
    except ValueError:
        return {} if lines else None
    return payload if isinstance(payload, dict) else {}


def _says_nothing(choice: object) -> bool:
    if not isinstance(choice, dict) or choice.get("finish_reason") is not None:
        return False
    delta = choice.get("delta")
    return isinstance(delta, dict) and not any(value for key, value in delta.items() if key != "role")
