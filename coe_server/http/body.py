"""A JSON request body, read once: its fields for routing, and every other byte kept as it came."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from coe_server.errors import RequestError

MOST_MEMBERS = 256  # OpenAI's own requests have about 40
LARGE_BYTES = 64 * 1024  # reading a body of this size may take milliseconds
MOST_MARKS = 500_000  # commas and opening brackets in a large body: 16 million lists would be seconds and gigabytes
NESTED_TOO_DEEPLY = "the body is nested too deeply"

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Member:
    """One top-level `"key": value` and which bytes it takes; ends are exclusive."""

    key: str
    start: int
    value_start: int
    end: int


@dataclass(frozen=True, slots=True)
class Body:
    """The parsed top-level object together with the bytes it came from."""

    raw: bytes
    fields: Mapping[str, Any]
    members: tuple[Member, ...]

    def for_engine(self, model: str) -> tuple[bytes | memoryview, ...]:
        """The same bytes, in pieces, with the value of `model` replaced (or added) and `coe` removed."""
        raw, name = memoryview(self.raw), json.dumps(model).encode()
        end = self.members[-1].end if self.members else self.raw.index(b"}")
        pieces: list[bytes | memoryview] = [raw[: self.members[0].start if self.members else end]]
        for before, member in zip((None, *self.members), self.members, strict=False):
            if member.key != "coe":
                start = before.end if before and len(pieces) > 1 else member.start  # the comma only between two
                pieces.append(raw[start : member.value_start])
                pieces.append(name if member.key == "model" else raw[member.value_start : member.end])
        if "model" not in self.fields:
            pieces += [b', "model": ' if len(pieces) > 1 else b'"model": ', name]
        return (*pieces, raw[end:])


def read_body(raw: bytes) -> Body:
    """Parse a request body. Raises RequestError if it is not one JSON object, or has too many members or values.

    The encoding is UTF-8, UTF-16 or UTF-32, with or without a byte order mark. `Body.raw` is UTF-8 without a mark.
    """
    try:
        raw = _in_utf_8(raw)
        if len(raw) > LARGE_BYTES and sum(map(raw.count, (b",", b"[", b"{"))) > MOST_MARKS:
            raise RequestError(
                f"the body has more than {MOST_MARKS:,} values (commas and opening brackets are counted)"
            )
        text = raw.decode()
        members, fields = _scan_object(text)
    except UnicodeDecodeError as error:
        if raw.startswith(_GZIP):
            raise RequestError("the body is compressed; say so: `content-encoding: gzip`") from error
        raise RequestError(f"the body is not {error.encoding.upper()} (byte {error.start})") from error
    except RecursionError as error:
        raise RequestError(NESTED_TOO_DEEPLY) from error
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    return Body(raw, fields, tuple(members if len(text) == len(raw) else _in_bytes(members, text)))


def _in_utf_8(raw: bytes) -> bytes:
    """The same text in UTF-8 without a byte order mark; the same object where that changes nothing."""
    encoding = json.detect_encoding(raw)
    if encoding.startswith("utf-8"):
        return raw.removeprefix(BOM_UTF8)
    text = raw.decode(encoding, "surrogatepass")
    return text.encode("utf-8", "backslashreplace")  # half of a surrogate pair becomes \\ud800, as JSON writes it


def _scan_object(text: str) -> tuple[list[Member], dict[str, Any]]:
    """The members, with places in characters, and their values. Raises ValueError, RecursionError and RequestError."""
    members: list[Member] = []
    fields: dict[str, Any] = {}
    mark = _OPENING.match(text)
    if mark is None:
        raise RequestError("the body must be a JSON object")
    while mark[1] != "}":
        if len(members) == MOST_MEMBERS:
            raise RequestError(f"the body has more than {MOST_MEMBERS} top-level fields")
        start = mark.end()
        if not text.startswith('"', start):
            raise json.JSONDecodeError("Expecting '\"'", text, start)
        key, end = _DECODER.raw_decode(text, start)
        colon = _COLON.match(text, end)
        if colon is None:
            raise json.JSONDecodeError("Expecting ':'", text, end)
        fields[key], end = _DECODER.raw_decode(text, colon.end())
        members.append(Member(key, start, colon.end(), end))
        mark = _COMMA_OR_END.match(text, end)
        if mark is None:
            raise json.JSONDecodeError("Expecting ',' or '}'", text, end)
    if mark.end() != len(text):
        raise json.JSONDecodeError("Extra data", text, mark.end())
    return members, fields


def _in_bytes(members: Iterable[Member], text: str) -> Iterator[Member]:
    """The same members with places in the UTF-8 bytes of the text."""
    at, passed = 0, 0
    for member in members:
        places = []
        for place in (member.start, member.value_start, member.end):
            passed += len(text[at:place].encode())
            at = place
            places.append(passed)
        yield Member(member.key, *places)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_BLANKS = r"[ \t\n\r]*"
_OPENING = re.compile(rf"{_BLANKS}{{{_BLANKS}(?:(}}){_BLANKS})?")
_COLON = re.compile(rf"{_BLANKS}:{_BLANKS}")
_COMMA_OR_END = re.compile(rf"{_BLANKS}([,}}]){_BLANKS}")
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
