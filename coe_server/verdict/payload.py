"""The JSON of an answer: bytes in, a value out, of bounded depth and so many objects and lists. Knows no API."""

from __future__ import annotations

import json
import re
from typing import Any

MOST_PARTS = 32 * 1024  # objects and lists; a megabyte of them takes a tenth of a second to read
MOST_NESTED = 100  # levels; answers have ten, a schema that is repeated in one some twenty more
TOO_COMPLEX = f"JSON nested more than {MOST_NESTED} levels deep, or of more than {MOST_PARTS:,} objects and lists"
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # without an end it reaches to the last byte
_OPENING, _BRACKETS = frozenset(b"[{"), b"[]{}"
_ANYTHING_ELSE = bytes(byte for byte in range(256) if byte not in _BRACKETS)


class TooComplex(ValueError):
    """JSON, perhaps, but nested deeper than MOST_NESTED, or of more parts than MOST_PARTS."""


def json_value(data: bytes) -> Any:
    """The value. Raises ValueError where it is none, and TooComplex."""
    if is_complex(data):
        raise TooComplex(TOO_COMPLEX)
    return json.loads(data)


def is_complex(data: bytes) -> bool:
    """Whether there are too many brackets, or too many open at one place; in linear time, whatever the bytes are."""
    if _openings(data) <= MOST_NESTED:
        return False
    brackets = _TEXT.sub(b"", data).translate(None, _ANYTHING_ELSE)
    if _openings(brackets) > MOST_PARTS:
        return True
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in _OPENING else -1
        if depth > MOST_NESTED:
            return True
    return False


def _openings(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")
