"""Multipart forms (RFC 7578): the small fields, and where the value of `model` is in the bytes. Pure.

Files are not read. A form may be incomplete: then the fields before its first file are known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import NamedTuple, Protocol

from coe_server.errors import RequestError

LONGEST_FIELDS_BYTES = 64 * 1024  # of all fields together, and where the first file must begin for a streamed form
MOST_PARTS = 256
_LONGEST_PART_HEADERS = 8 * 1024
_LONGEST_BOUNDARY = 70  # RFC 2046, 5.1.1
_BLANKS = re.compile(rb"[ \t]*")
MODEL = "model"


class Searched(Protocol):
    """Bytes, or a mapped file of them."""

    def find(self, wanted: bytes, start: int, /) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes | bytearray: ...

    def __len__(self) -> int: ...


class Span(NamedTuple):
    """Bytes from `start` to before `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Form:
    """`fields`: name -> text of each field seen. `model`: where the model's name is, None if it was not seen.

    `first`: where the first delimiter is. `file`: where the first file begins, None if the bytes do not go so far.
    `complete`: they go as far as the form's end.
    """

    fields: Mapping[str, str]
    model: Span | None
    first: int
    file: int | None
    complete: bool

    def with_model(self, name: str, boundary: bytes) -> tuple[Span, bytes]:
        """The bytes to replace, and their replacement: the engine's name of the model instead of the caller's."""
        if self.model is not None:
            return self.model, name.encode()
        part = b'--%b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n' % (boundary, name.encode())
        return Span(self.first, self.first), part


def boundary_of(content_type: str) -> bytes:
    """The boundary in a content type. Raises RequestError if it is not that of a form."""
    parsed = Message()
    parsed["content-type"] = content_type
    boundary = parsed.get_param("boundary")
    if parsed.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise RequestError(
            f"content-type {content_type[:80]!r} is not a form; send multipart/form-data with a boundary, as "
            "`curl -F` and the client libraries do"
        )
    if len(boundary) > _LONGEST_BOUNDARY or not boundary.isascii():
        raise RequestError(f"the boundary of the form is longer than {_LONGEST_BOUNDARY} bytes or not ASCII")
    return boundary.encode()


class _Part(NamedTuple):
    """One part; `end` is None if its content goes on behind the bytes."""

    name: str
    is_file: bool
    start: int
    end: int | None


@dataclass(slots=True)
class _Seen:
    """What was read so far."""

    fields: dict[str, str] = field(default_factory=dict)
    model: Span | None = None
    file: int | None = None
    fields_bytes: int = 0

    def take(self, part: _Part, body: Searched) -> None:
        """Note one part. Raises RequestError if it is the second `model`, or a field that is not UTF-8."""
        name, end = part.name, len(body) if part.end is None else part.end
        self.fields_bytes += 0 if part.is_file else end - part.start
        if part.is_file or self.fields_bytes > LONGEST_FIELDS_BYTES:
            self.file = part.start if self.file is None else self.file
            return
        if part.end is None:
            return
        if name == MODEL:
            if self.model is not None:
                raise _second_model()
            self.model = Span(part.start, end)
        try:
            self.fields[name] = bytes(body[part.start : end]).decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"the form's field '{name[:40]}' is not UTF-8", name[:40]) from error


def read_form(body: Searched, boundary: bytes, ends_here: bool = False) -> Form:
    """The form in these bytes, or in its beginning. Raises RequestError if they cannot be one.

    `ends_here`: these are all bytes, so a form that is incomplete is an error.
    """
    delimiter, seen = b"--" + boundary, _Seen()
    first = body.find(delimiter, 0)
    if first > 0 and body[first - 2 : first] != b"\r\n":
        raise _malformed("no delimiter at its beginning")
    at: int | None = None if first < 0 else first + len(delimiter)
    for _ in range(MOST_PARTS + 1):
        if at is not None and body[at : at + 2] == b"--":
            return Form(seen.fields, seen.model, first, seen.file, complete=True)
        part = None if at is None else _part(body, at, delimiter)
        if part is not None:
            seen.take(part, body)
        if part is None or part.end is None:
            if ends_here:
                raise _malformed("no end")
            return Form(seen.fields, seen.model, max(first, 0), seen.file, complete=False)
        at = part.end + len(b"\r\n") + len(delimiter)
    raise RequestError(f"the form has more than {MOST_PARTS} parts")


def _part(body: Searched, at: int, delimiter: bytes) -> _Part | None:
    """The part whose delimiter ends at `at`; None if its headers are incomplete."""
    head = _head_of(body, at)
    if head is None:
        return None
    start = head.end + len(b"\r\n\r\n")
    end = body.find(b"\r\n" + delimiter, start)
    return _Part(*_disposition(bytes(body[head.start : head.end])), start, None if end < 0 else end)


def _head_of(body: Searched, at: int) -> Span | None:
    """The headers of a part, whose delimiter ends at `at`; None if they are incomplete."""
    after = bytes(body[at : at + _LONGEST_PART_HEADERS + 4])
    blanks = _BLANKS.match(after)
    start = blanks.end() if blanks is not None else 0
    if after == b"-":
        return None  # half of the form's end
    if after[start : start + 2] not in {b"\r\n", b"\r", b""}:
        raise _malformed("a delimiter that is not followed by a line")
    end = after.find(b"\r\n\r\n", start)
    if end < 0:
        if len(after) > _LONGEST_PART_HEADERS:
            raise RequestError(f"the headers of a part of the form are longer than {_LONGEST_PART_HEADERS} bytes")
        return None
    return Span(at + start, at + end)


def _disposition(head: bytes) -> tuple[str, bool]:
    """(name, whether it is a file) of a part with these headers."""
    parsed = Message()
    for line in head.split(b"\r\n"):
        key, _, value = line.decode("utf-8", "replace").partition(":")
        if key.strip().lower() == "content-disposition":
            parsed["content-disposition"] = value.strip()
    name = parsed.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise _malformed("a part without a name")
    return name, parsed.get_param("filename", header="content-disposition") is not None


def _malformed(why: str) -> RequestError:
    return RequestError(f"the body is not a valid form: it has {why}")


def _second_model() -> RequestError:
    return RequestError("the form has more than one field `model`", MODEL)


class RestOfForm:
    """Watches what follows a form's first file while it is passed on: a second `model` must not reach an engine."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._kept = b""

    def watch(self, piece: bytes) -> None:
        """Look at the next bytes. Raises RequestError for a field `model`, and for headers that are too long."""
        seen, at = self._kept + piece, 0
        while (at := seen.find(self._delimiter, at)) >= 0:
            after = at + len(self._delimiter)
            if seen[after : after + 2] == b"--":
                break
            head = _head_of(seen, after)
            if head is None:  # incomplete: with the next piece
                self._kept = seen[at:]
                return
            if _disposition(seen[head.start : head.end])[0] == MODEL:
                raise _second_model()
            at = after
        self._kept = seen[-(len(self._delimiter) + 1) :]
