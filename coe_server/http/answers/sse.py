"""Splits server-sent events; holds those before an answer's first content. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from coe_server.upstream.answer import Says
from coe_server.upstream.complaint import is_complex
from coe_server.upstream.verdict import END_OF_EVENT, NO_EVENTS, SILENT, Verdict, events_in, judge_event

LONGEST_HELD_BYTES = 1 << 20  # of an incomplete event, or of events without content
_MAY_TELL_OF_ERROR = re.compile(rb'error"|failed"|event: ?error')
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_BEFORE_SEAM_BYTES = 2  # of an event's end that is split over two chunks
JUDGED_BYTES = 2 * 1024  # at a time: this may be hundreds of events, in many streams at once


class EventCutter:
    """Returns whole events unchanged; holds the beginning of an incomplete one."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def rest(self) -> bytes:
        return bytes(self._rest)

    def whole_events(self, chunk: bytes) -> bytes:
        """All events that are whole now. Held bytes are neither copied nor searched again."""
        if not self._rest and chunk.endswith(b"\n\n"):
            return chunk
        seam = bytes(self._rest[-_BEFORE_SEAM_BYTES:])
        end = _end_of_last_event(seam + chunk if seam else chunk) - len(seam)  # in the chunk
        if end <= 0 or len(chunk) - end > LONGEST_HELD_BYTES:
            end = len(chunk) if len(self._rest) + len(chunk) > LONGEST_HELD_BYTES else 0
        if not end:
            self._rest += chunk
            return b""
        whole = bytes(self._rest) + chunk[:end] if self._rest else chunk[:end]
        self._rest = bytearray(chunk[end:])
        return whole


@dataclass(slots=True)
class Opening:
    """The events before the first content of an answer: until it arrives, another expert may be tried."""

    held: bytearray = field(default_factory=bytearray)
    _has_ended: bool = False
    _counted: bool = False
    _failed: Verdict | None = None  # of one of several choices

    def hear(self, events: bytes) -> bool:
        """Hold these events, none of which is an error; True if one has content."""
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
        """The verdict on a stream that ended without content; None for a valid answer."""
        if not self._has_ended:
            return self._failed or NO_EVENTS
        return None if may_be_silent or self._counted else SILENT


def before_error(events: bytes, has_several: bool = False) -> tuple[bytes, Verdict | None]:
    """The events before the first error event, and its verdict; all events and None if there is no error.

    One of several choices may fail while the others continue. vLLM reports in this way, under HTTP 200, an engine that
    died during an answer.
    """
    if is_plain(events):
        return events, None
    start = 0
    for event in events_in(events):
        may_tell = _MAY_TELL_OF_ERROR.search(event) or is_complex(event)  # an answer's text may mention errors, too
        found = judge_event(event) if may_tell else None
        if found is not None and found.verdict is not None and not (has_several and found.is_of_choice):
            return events[:start], found.verdict
        start += len(event)
    return events, None


def is_plain(events: bytes) -> bool:
    """True if none of them can be an error event, by a text search."""
    return b"error" not in events and b"failed" not in events and not is_complex(events)


def parts_of(events: bytes) -> Iterator[bytes]:
    """Whole events in parts of a few kilobytes; other requests run between two parts."""
    start = 0
    while len(events) - start > JUDGED_BYTES and (end := END_OF_EVENT.search(events, start + JUDGED_BYTES)):
        yield events[start : end.end()]
        start = end.end()
    yield events[start:] if start else events


def _end_of_last_event(data: bytes) -> int:
    if data.endswith(b"\n\n"):
        return len(data)
    ends = ((data.rfind(blank), len(blank)) for blank in _ENDS)
    return max((start + length for start, length in ends if start >= 0), default=0)
