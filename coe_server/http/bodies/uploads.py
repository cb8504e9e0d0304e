"""Forms with files (audio, images) on their way to an engine: streamed through, or first written to disk.

A form that names its model before its first file is streamed: its bytes are never held here. Any other form waits on
disk, in a file without a name, which the operating system deletes even if the server is killed.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Protocol

from fastapi import Request
from starlette.types import Message, Receive

from coe_server.engines.engine import StreamedBody
from coe_server.errors import BodiesFull, BodyTooLarge, BodyTooSlow, CoeError, RequestError, UnsupportedCoding
from coe_server.http.bodies.form import LONGEST_FIELDS_BYTES, Form, RestOfForm, boundary_of, read_form
from coe_server.http.rate_limits import Bodies, BodyLimits, Hold
from coe_server.keys import Key
from coe_server.upstream.content_coding import is_coded

_LOOKED_AT_AGAIN = 4096  # more bytes before the beginning of a form is read again
_WRITTEN_BYTES = 1 << 20  # at a time
_READ_BYTES = 256 * 1024
_UNREADABLE = "this server cannot read the form that it keeps on disk; send it again"
_NO_ROOM = "there is no room on disk for this form (state_directory)"


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """`largest_bytes` of one form, `disk_bytes` of all that wait on disk, and how long a form may make no progress."""

    largest_bytes: int = 512 * 2**20
    disk_bytes: int = 4 * 2**30
    stall_seconds: float = 60.0


class Upload(Protocol):
    """One form. `repeatable`: it can be sent once more, because its bytes are here or none was read."""

    form: Form
    content_type: str

    @property
    def repeatable(self) -> bool: ...

    def body(self, model: str) -> StreamedBody:
        """The form with the engine's name of the model."""

    async def receive(self) -> Message:
        """The client's next message after the form, such as its disconnect."""

    def close(self) -> None:
        """The request is over; calling this twice is harmless."""


class Uploads:
    """All forms in progress. `folder` is where they wait on disk."""

    def __init__(self, folder: Path) -> None:
        self.on_disk = Bodies(lambda: BodyLimits(self._limits.disk_bytes, self._limits.largest_bytes), "http.uploads")
        self._folder = folder
        self._limits = UploadLimits()

    async def received(self, request: Request, limits: UploadLimits, key: Key | None) -> Upload:
        """Read a form of this key as far as needed.

        Raises RequestError, BodyTooLarge, BodyTooSlow, BodiesFull, RateLimited and UnsupportedCoding.
        """
        self._limits = limits
        content_type = request.headers.get("content-type", "")
        boundary = boundary_of(content_type)
        if is_coded(request.headers.getlist("content-encoding")):
            raise UnsupportedCoding("a form is not taken with a content-encoding; send it as it is")
        announced = request.headers.get("content-length", "")
        size_bytes = int(announced) if announced.isdecimal() else None
        incoming = _Incoming(request.receive, limits)
        incoming.require_fits(size_bytes or 0)
        head, form = await _beginning(incoming, boundary)
        if incoming.complete:
            return _InMemory(bytes(head), form, boundary, content_type, incoming)
        if form.model is not None and size_bytes is not None:
            return _Streamed(bytes(head), form, boundary, content_type, incoming, size_bytes)
        return await self._spooled(head, boundary, content_type, incoming, self.on_disk.hold(key))

    async def _spooled(
        self, head: bytearray, boundary: bytes, content_type: str, incoming: _Incoming, hold: Hold
    ) -> _Spooled:
        try:
            file = await asyncio.to_thread(TemporaryFile, "wb+", 0, dir=self._folder)
            try:
                size_bytes = await _written(file, head, incoming, hold)
                form = await asyncio.to_thread(read_form, _OnDisk(file, size_bytes), boundary, True)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            hold.release()
            raise BodiesFull(f"{_NO_ROOM}: {error.strerror or error}") from error
        except BaseException:
            hold.release()
            raise
        return _Spooled(file, size_bytes, form, boundary, content_type, incoming, hold)


async def _beginning(incoming: _Incoming, boundary: bytes) -> tuple[bytearray, Form]:
    """The form's bytes and fields up to its first file, its end, or the limit of fields."""
    head, looked_at = bytearray(), -_LOOKED_AT_AGAIN
    while True:
        head += await incoming.next()
        if len(head) - looked_at < _LOOKED_AT_AGAIN and not incoming.complete:
            continue
        looked_at = len(head)
        form = read_form(head, boundary, ends_here=incoming.complete)
        if incoming.complete or form.file is not None or len(head) > LONGEST_FIELDS_BYTES:
            return head, form


async def _written(file: IO[bytes], head: bytearray, incoming: _Incoming, hold: Hold) -> int:
    """Write the whole form to disk; returns its size."""
    size_bytes, waiting = 0, head
    while True:
        if waiting and (len(waiting) >= _WRITTEN_BYTES or incoming.complete):
            size_bytes += len(waiting)
            hold.reach(size_bytes)
            await asyncio.to_thread(_write_all, file, bytes(waiting))
            waiting = bytearray()
        if incoming.complete:
            return size_bytes
        waiting += await incoming.next()


def _write_all(file: IO[bytes], piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


class _OnDisk:
    """The bytes of a file to be searched, of which little is in memory at a time; a mapped file would count as ours."""

    def __init__(self, file: IO[bytes], size_bytes: int) -> None:
        self._descriptor = file.fileno()
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(self._size_bytes)
        return os.pread(self._descriptor, max(0, end - start), start)

    def find(self, wanted: bytes, start: int, /) -> int:
        while start < self._size_bytes:
            found = self[start : start + _WRITTEN_BYTES + len(wanted)].find(wanted)
            if found >= 0:
                return start + found
            start += _WRITTEN_BYTES
        return -1


class _Incoming:
    """The client's bytes, within the limits of size and time."""

    def __init__(self, receive: Receive, limits: UploadLimits) -> None:
        self.complete = False
        self.disconnected = False
        self.over = asyncio.Event()  # complete, or ended early
        self._receive = receive
        self._limits = limits
        self._size_bytes = 0

    async def next(self) -> bytes:
        """The next bytes; may be empty. Raises BodyTooLarge, BodyTooSlow, and RequestError if the client is gone."""
        try:
            async with asyncio.timeout(self._limits.stall_seconds):
                message = await self._receive()
        except TimeoutError as error:
            self.over.set()
            raise BodyTooSlow(
                f"no byte of the form arrived within {self._limits.stall_seconds:g} s (http.body_seconds)"
            ) from error
        if message["type"] == "http.disconnect":
            self.disconnected = True
            self.over.set()
            raise RequestError("the client disconnected before its body was complete")
        piece: bytes = message.get("body", b"")
        self._size_bytes += len(piece)
        self.require_fits(self._size_bytes)
        if not message.get("more_body", False):
            self.complete = True
            self.over.set()
        return piece

    def require_fits(self, size_bytes: int) -> None:
        if size_bytes > self._limits.largest_bytes:
            self.over.set()
            raise BodyTooLarge(f"the form is larger than {self._limits.largest_bytes} bytes (http.max_upload)")

    async def after(self) -> Message:
        """The client's next message after its form."""
        await self.over.wait()
        return {"type": "http.disconnect"} if self.disconnected else await self._receive()


class _InMemory:
    """A form so small that it was read whole."""

    repeatable = True

    def __init__(self, raw: bytes, form: Form, boundary: bytes, content_type: str, incoming: _Incoming) -> None:
        self.form = form
        self.content_type = content_type
        self.receive = incoming.after
        self._raw = raw
        self._boundary = boundary

    def body(self, model: str) -> StreamedBody:
        span, instead = self.form.with_model(model, self._boundary)
        return _Whole(self._raw[: span.start] + instead + self._raw[span.end :])

    def close(self) -> None:
        """Nothing to do: it is memory."""


class _Whole:
    """A `StreamedBody` of one piece."""

    failure: CoeError | None = None

    def __init__(self, raw: bytes) -> None:
        self.size_bytes = len(raw)
        self._raw = raw

    async def pieces(self) -> AsyncIterator[bytes]:
        yield self._raw


class _Streamed:
    """A form whose bytes come while they are sent; it can be sent once."""

    def __init__(
        self, head: bytes, form: Form, boundary: bytes, content_type: str, incoming: _Incoming, size_bytes: int
    ) -> None:
        self.form = form
        self.content_type = content_type
        self.receive = incoming.after
        self.failure: CoeError | None = None
        self._head = head
        self._boundary = boundary
        self._incoming = incoming
        self._announced_bytes = size_bytes
        self._begun = False
        self._model = ""

    @property
    def repeatable(self) -> bool:
        return not self._begun

    def body(self, model: str) -> StreamedBody:
        self._model = model
        return self

    @property
    def size_bytes(self) -> int:
        span, instead = self.form.with_model(self._model, self._boundary)
        return self._announced_bytes - (span.end - span.start) + len(instead)

    async def pieces(self) -> AsyncIterator[bytes]:
        assert not self._begun, "a streamed form is sent once"
        span, instead = self.form.with_model(self._model, self._boundary)
        rest = RestOfForm(self._boundary)
        yield self._head[: span.start] + instead + self._head[span.end :]
        self._begun = True
        try:
            rest.watch(self._head[self.form.file or len(self._head) :])
            while not self._incoming.complete:
                piece = await self._incoming.next()
                rest.watch(piece)
                if piece:
                    yield piece
        except CoeError as error:
            self.failure = error
            raise

    def close(self) -> None:
        """Nothing to do: its bytes are the client's."""


class _Spooled:
    """A form in a file; it can be sent again."""

    repeatable = True
    failure: CoeError | None = None

    def __init__(
        self,
        file: IO[bytes],
        size_bytes: int,
        form: Form,
        boundary: bytes,
        content_type: str,
        incoming: _Incoming,
        hold: Hold,
    ) -> None:
        self.form = form
        self.content_type = content_type
        self.receive = incoming.after
        self._file = file
        self._file_bytes = size_bytes
        self._boundary = boundary
        self._hold = hold

    def body(self, model: str) -> StreamedBody:
        return _FromDisk(self._file, self._file_bytes, *self.form.with_model(model, self._boundary))

    def close(self) -> None:
        self._file.close()
        self._hold.release()


class _FromDisk:
    """A `StreamedBody` from a file, with some of its bytes replaced. Raises `failure` if the file cannot be read."""

    def __init__(self, file: IO[bytes], file_bytes: int, replaced: tuple[int, int], instead: bytes) -> None:
        self.failure: CoeError | None = None
        self.size_bytes = file_bytes - (replaced[1] - replaced[0]) + len(instead)
        self._file = file
        self._file_bytes = file_bytes
        self._replaced = replaced
        self._instead = instead

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._part(0, self._replaced[0]):
            yield piece
        yield self._instead
        async for piece in self._part(self._replaced[1], self._file_bytes):
            yield piece

    async def _part(self, start: int, end: int) -> AsyncIterator[bytes]:
        while start < end:
            try:
                piece = await asyncio.to_thread(self._read, min(_READ_BYTES, end - start), start)
            except OSError as error:
                self.failure = CoeError(f"{_UNREADABLE}\n{error.strerror or error} (state_directory)")
                raise self.failure from error
            start += len(piece)
            yield piece

    def _read(self, size: int, start: int) -> bytes:
        if piece := os.pread(self._file.fileno(), size, start):
            return piece
        raise OSError(errno.EIO, "the file ends before the form")
