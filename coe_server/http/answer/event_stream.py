"""Server-sent events as bytes: where one ends, and those before the first word of an answer. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from coe_server.verdict.answer import Says
from coe_server.verdict.verdict import NO_EVENTS, SILENT, Verdict, events_in, judge_event

LONGEST_HELD_BYTES = 1 << 20  # of an event whose end has not come yet, or of events without a word
_MAY_TELL_OF_ERROR = re.compile(rb'error"|failed"|event: ?error')
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")


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


@dataclass(slots=True)
class Opening:
    """The events before the first word of an answer: until it comes another expert may still answer instead."""

    held: bytearray = field(default_factory=bytearray)
    _has_ended: bool = False
    _counted: bool = False
    _failed: Verdict | None = None  # of one of several choices

    def hear(self, events: bytes) -> bool:
        """Hold these events, none of which tells of an error; True if a word is among them."""
        self.held += events
        for event in events_in(events):
            found = judge_event(event)
            if found.says is Says.WORD:
                return True
            self._has_ended = self._has_ended or found.says is Says.SILENCE
            self._counted = self._counted or found.counted
            self._failed = self._failed or found.verdict
        return False

    def verdict(self, may_be_silent: bool) -> Verdict | None:
        """What a stream that is over without a word is; None for an answer."""
        if not self._has_ended:
            return self._failed or NO_EVENTS
        return None if may_be_silent or self._counted else SILENT


def before_error(events: bytes, has_several: bool = False) -> tuple[bytes, Verdict | None]:
    """The events before the first that tells of an error, and what that one tells; all of them and None if none does.
    One of several choices may fail, and the others go on.

    vLLM tells so, under HTTP 200, of an engine that died in the middle of an answer.
    """
    if b"error" not in events and b"failed" not in events:
        return events, None
    start = 0
    for event in events_in(events):
        found = judge_event(event) if _MAY_TELL_OF_ERROR.search(event) else None  # an answer may speak of errors, too
        if found is not None and found.verdict is not None and not (has_several and found.is_of_choice):
            return events[:start], found.verdict
        start += len(event)
    return events, None


def _end_of_last_event(data: bytes) -> int:
    if data.endswith(b"\n\n"):
        return len(data)
    ends = ((data.rfind(blank), len(blank)) for blank in _ENDS)
    return max((start + length for start, length in ends if start >= 0), default=0)
