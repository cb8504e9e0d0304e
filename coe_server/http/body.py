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

    @property
    def _inside(self) -> tuple[int, int]:
        """Where the first member starts and the last one ends."""
        if self.members:
            return self.members[0].start, self.members[-1].end
        brace = self.raw.index(b"}")
        return brace, brace

    def for_engine(self, model: str) -> tuple[bytes | memoryview, ...]:
        """The same bytes, in pieces, with the value of `model` replaced (or added) and `coe` removed."""
        raw = memoryview(self.raw)
        pieces: list[bytes | memoryview] = [raw[: self._inside[0]]]
        for before, member in zip((None, *self.members), self.members, strict=False):
            if member.key == "coe":
                continue
            if len(pieces) > 1 and before is not None:
                pieces.append(raw[before.end : member.start])
            pieces.append(raw[member.start : member.value_start])
            is_model = member.key == "model"
            pieces.append(json.dumps(model).encode() if is_model else raw[member.value_start : member.end])
        if "model" not in self.fields:
            pieces.append(f'{", " if len(pieces) > 1 else ""}"model": {json.dumps(model)}'.encode())
        pieces.append(raw[self._inside[1] :])
        return tuple(pieces)


def read_body(raw: bytes) -> Body:
    """Parse a request body. Raises RequestError with a sentence if it is not one JSON object.

    In UTF-8, UTF-16 or UTF-32, with a byte order mark or without; kept, and passed on, as UTF-8 without a mark.
    """
    raw = _without_mark(raw)
    if len(raw) > LARGE_BYTES and sum(map(raw.count, (b",", b"[", b"{"))) > MOST_MARKS:
        raise RequestError(f"the body has more than {MOST_MARKS:,} values (commas and opening brackets are counted)")
    try:
        text = raw.decode()
        members, fields = _scan_object(text)
    except UnicodeDecodeError as error:
        if raw.startswith(_GZIP):
            raise RequestError("the body is compressed; say so: `content-encoding: gzip`") from error
        raise RequestError(f"the body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    return Body(raw, fields, members if len(text) == len(raw) else tuple(_in_bytes(members, text)))


def _without_mark(raw: bytes) -> bytes:
    """The same in UTF-8 without a byte order mark; what is that already stays as it is."""
    encoding = json.detect_encoding(raw)
    if encoding == "utf-8":
        return raw
    if encoding == "utf-8-sig":
        return raw[len(BOM_UTF8) :]
    try:
        text = raw.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not {encoding.upper()} (byte {error.start})") from error
    return text.encode("utf-8", "backslashreplace")  # half a surrogate: \\ud800, as JSON writes it


def _in_bytes(members: Iterable[Member], text: str) -> Iterator[Member]:
    """Members that stand at characters of the text, as they stand in its bytes."""
    at, passed = 0, 0
    for member in members:
        ends = []
        for place in (member.start, member.value_start, member.end):
            passed += len(text[at:place].encode())
            at = place
            ends.append(passed)
        yield Member(member.key, *ends)


def _scan_object(text: str) -> tuple[tuple[Member, ...], dict[str, Any]]:
    position = _skip_space(text, 0)
    if text[position : position + 1] != "{":
        raise RequestError("the body must be a JSON object")
    members: list[Member] = []
    fields: dict[str, Any] = {}
    position = _skip_space(text, position + 1)
    closing = _SPACED["}"].match(text, position)
    while closing is None:
        if len(members) == MOST_MEMBERS:
            raise RequestError(f"the body has more than {MOST_MEMBERS} top-level fields")
        if not text.startswith('"', position):
            raise json.JSONDecodeError("Expecting '\"'", text, position)
        key, after = _DECODER.raw_decode(text, position)
        value_start = _after(":", text, after)
        fields[key], end = _DECODER.raw_decode(text, value_start)
        members.append(Member(key, position, value_start, end))
        closing = _SPACED["}"].match(text, end)
        if closing is None:
            position = _after(",", text, end)
    if closing.end() != len(text):
        raise json.JSONDecodeError("Extra data", text, closing.end())
    return tuple(members), fields


def _after(mark: str, text: str, position: int) -> int:
    """The position of what follows a mark and the space around it, which must stand here."""
    match = _SPACED[mark].match(text, position)
    if match is None:
        raise json.JSONDecodeError(f"Expecting '{mark}'", text, _skip_space(text, position))
    return match.end()


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None, "the pattern matches the empty string"
    return match.end()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_SPACE = re.compile(r"[ \t\n\r]*")
_SPACED = {mark: re.compile(f"{_SPACE.pattern}{mark}{_SPACE.pattern}") for mark in (":", ",", "}")}
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
