"""Content codings of HTTP (RFC 9110, 8.4.1): decoded piece by piece, never beyond a limit. Knows no requests.

Each coding gives its output in chunks, so that little is held of what expands a thousandfold.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK_BYTES = 64 * 1024  # brotli's chunks may be half as long again
MOST_CODINGS = 4  # one on top of the other
MOST_PARTS = 1000  # members of gzip, frames of zstd; a thousand empty ones take milliseconds
_WINDOW_LOG = 23  # 8 MiB: more than RFC 9659 lets a zstd encoder ask for is memory for an attacker


class UnknownCoding(Exception):
    """A coding that is not decoded here; the message is its name."""


class WrongData(Exception):
    """What came is not what its coding says; the message names the coding and what is wrong."""


class TooLong(Exception):
    """What comes out is longer than the limit."""


class Decoder:
    """Decodes one body. `codings` are in the order in which they were applied, as `codings_of` gives them."""

    def __init__(self, codings: Sequence[str], limit_bytes: int) -> None:
        self._stages = [_Stage(name) for name in reversed(codings)]
        self._limits = [2 * limit_bytes + CHUNK_BYTES] * (len(codings) - 1) + [limit_bytes]
        self._passed = [0] * len(codings)

    def decode(self, piece: bytes) -> list[bytes]:
        """What a piece gives. Takes long for a piece that gives much. Raises WrongData or TooLong."""
        return [chunk for chunk in self._decoded(piece, 0) if chunk]

    def end(self) -> None:
        """There is no further piece. Raises WrongData if there should be one."""
        for stage in self._stages:
            stage.end()

    def _decoded(self, piece: bytes, at: int) -> Iterator[bytes]:
        if at == len(self._stages):
            yield piece
            return
        for chunk in self._stages[at].feed(piece):
            self._passed[at] += len(chunk)
            if self._passed[at] > self._limits[at]:
                raise TooLong
            yield from self._decoded(chunk, at + 1)


def codings_of(lines: Iterable[str]) -> tuple[str, ...]:
    """The codings that the lines of a Content-Encoding header name, in the order in which they were applied.

    Raises UnknownCoding for one that is not decoded here, or for too many.
    """
    named = [name.strip().lower() for line in lines for name in line.split(",")]
    found = tuple(_ALIASES.get(name, name) for name in named if name not in {"", "identity"})
    for name in found:
        if name not in TAKEN:
            raise UnknownCoding(name)
    if len(found) > MOST_CODINGS:
        raise UnknownCoding(f"{len(found)} codings, one on top of the other")
    return found


class _Part(Protocol):
    """One gzip member, zstd frame or the like; `repeats`: another one may follow."""

    repeats: bool

    @property
    def eof(self) -> bool:
        """Its end has come."""

    @property
    def unused_data(self) -> bytes:
        """What came behind its end."""

    def chunks(self, piece: bytes) -> Iterator[bytes]:
        """What a piece gives, all of it. Raises an error of the coding's own."""


class _Stage:
    """One coding: a part, or several one behind the other where the coding has such."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._part = _BEGINNINGS[coding]()
        self._parts = 1

    def feed(self, piece: bytes) -> Iterator[bytes]:
        while piece:
            if self._part.eof:
                self._next_part()
            try:
                yield from self._part.chunks(piece)
            except _ERRORS as error:
                raise WrongData(f"{self._coding}: {str(error)[0].lower()}{str(error)[1:]}") from error
            piece = self._part.unused_data if self._part.eof else b""

    def end(self) -> None:
        if not self._part.eof:
            raise WrongData(f"{self._coding}: it ends too early")

    def _next_part(self) -> None:
        if not self._part.repeats:
            raise WrongData(f"{self._coding}: something follows its end")
        if self._parts == MOST_PARTS:
            raise WrongData(f"{self._coding}: it has more than {MOST_PARTS} parts")
        self._part = _BEGINNINGS[self._coding]()
        self._parts += 1


class _Zlib:
    """A member of gzip, and what deflate is in zlib's format and without."""

    def __init__(self, window_bits: int, repeats: bool = False) -> None:
        self.repeats = repeats
        self._stream = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def chunks(self, piece: bytes) -> Iterator[bytes]:
        while chunk := self._stream.decompress(piece, CHUNK_BYTES):
            yield chunk
            piece = self._stream.unconsumed_tail


class _Deflate(_Zlib):
    """In zlib's format, as the standard says, or without it, as some send it: the first two bytes tell."""

    def __init__(self) -> None:
        super().__init__(zlib.MAX_WBITS)
        self._first = b""

    def chunks(self, piece: bytes) -> Iterator[bytes]:
        if len(self._first) < 2:
            self._first += piece
            if len(self._first) < 2:
                return
            piece = self._first
            if piece[0] & 0x0F != zlib.DEFLATED or int.from_bytes(piece[:2], "big") % 31:
                self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        yield from super().chunks(piece)


class _Brotli:
    repeats = False
    unused_data = b""  # its decoder fails where something follows

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    @property
    def eof(self) -> bool:
        return bool(self._stream.is_finished())

    def chunks(self, piece: bytes) -> Iterator[bytes]:
        chunk = self._stream.process(piece, output_buffer_limit=CHUNK_BYTES)
        yield chunk
        while not self.eof and (chunk or not self._stream.can_accept_more_data()):  # it may hold output beside input
            chunk = self._stream.process(b"", output_buffer_limit=CHUNK_BYTES)
            yield chunk


class _Zstd:
    repeats = True

    def __init__(self) -> None:
        self._stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def chunks(self, piece: bytes) -> Iterator[bytes]:
        yield self._stream.decompress(piece, CHUNK_BYTES)
        while not self._stream.eof and not self._stream.needs_input:
            yield self._stream.decompress(b"", CHUNK_BYTES)


_BEGINNINGS: dict[str, Callable[[], _Part]] = {
    "gzip": lambda: _Zlib(16 + zlib.MAX_WBITS, repeats=True),
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}
_ERRORS = (zlib.error, brotli.error, zstd.ZstdError)
_ALIASES = {"x-gzip": "gzip"}
TAKEN = tuple(_BEGINNINGS)
