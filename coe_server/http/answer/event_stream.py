"""Server-sent events as bytes: where one ends, whether the answer has begun in it, whether it is an error. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_HELD_BYTES = 1 << 20  # of an event whose end has not come yet
_END = re.compile(rb"\r?\n\r?\n")
# What OpenAI's responses and Anthropic's messages say before the first word of an answer.
_OPENING_KINDS = (
    *("response.created", "response.queued", "response.in_progress", "response.output_item.added"),
    *("response.content_part.added", "message_start", "content_block_start", "ping"),
)


class EventCutter:
    """Gives whole events, byte for byte as they came; holds back the beginning of one that is not whole yet."""

    def __init__(self) -> None:
        self.rest = b""

    def whole_events(self, chunk: bytes) -> bytes:
        """All that are whole now, one after the other."""
        data = self.rest + chunk if self.rest else chunk
        end = _end_of_last_event(data)
        if len(data) - end > LONGEST_HELD_BYTES:
            end = len(data)
        self.rest = data[end:]
        return data[:end]


@dataclass(frozen=True, slots=True)
class Failure:
    """An event that tells of an engine's failure: where it begins, and what it says."""

    start: int
    message: str


def first_failure(events: bytes) -> Failure | None:
    """The first event that tells of a failure. vLLM tells so, under HTTP 200, of an engine that died mid-answer."""
    if b'"error"' not in events:
        return None
    start = 0
    for event in events_in(events):
        error = _error_of(event)
        if error is not None and not _is_callers(error):
            return Failure(start, str(error.get("message")))
        start += len(event)
    return None


def events_in(events: bytes) -> Iterator[bytes]:
    """Each of several whole events; what follows the last of them is one more."""
    start = 0
    for match in _END.finditer(events):
        yield events[start : match.end()]
        start = match.end()
    if start < len(events):
        yield events[start:]


def is_opening(event: bytes) -> bool:
    """Whether an event comes before the first word of an answer: another expert may still answer instead."""
    payload = _payload_of(event)
    if payload is None:
        return True  # a comment
    if payload.get("type") in _OPENING_KINDS:
        return True
    choices = payload.get("choices")
    return isinstance(choices, list) and bool(choices) and all(_says_nothing(choice) for choice in choices)


def _payload_of(event: bytes) -> dict[str, Any] | None:
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


def _error_of(event: bytes) -> Mapping[str, Any] | None:
    """What went wrong, where an event ends an answer with that, in any of the four APIs."""
    payload = _payload_of(event) or {}
    error = payload.get("error")
    match payload.get("type"):
        case "error" if "error" not in payload:  # OpenAI's responses
            return payload
        case "response.failed":
            return _engines_own(payload.get("response"))
    return error if isinstance(error, dict) and _has_ended(payload.get("choices")) else None


def _has_ended(choices: object) -> bool:
    """Beside an error: there are no choices, or they say that it is why they ended."""
    if not isinstance(choices, list):
        return not choices
    return all(isinstance(one, dict) and one.get("finish_reason") == "error" for one in choices)


def _engines_own(response: object) -> dict[str, Any] | None:
    """The error of a response that failed, unless it is about what was asked (`invalid_prompt`, images, ...)."""
    error = response.get("error") if isinstance(response, dict) else None
    return error if isinstance(error, dict) and error.get("code") in ("server_error", "rate_limit_exceeded") else None


def _is_callers(error: Mapping[str, object]) -> bool:
    """An error in a stream that tells of the request and not of the engine."""
    code = error.get("code")
    return error.get("type") == "invalid_request_error" or (isinstance(code, int) and 400 <= code < 500)


def _end_of_last_event(data: bytes) -> int:
    if data.endswith(b"\n\n"):
        return len(data)
    ends = ((data.rfind(blank), len(blank)) for blank in (b"\n\n", b"\n\r\n"))
    return max((start + length for start, length in ends if start >= 0), default=0)
