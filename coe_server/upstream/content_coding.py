"""Decodes HTTP content codings (RFC 9110, 8.4.1) incrementally and within limits.

Output comes in chunks, so that data that expand a thousandfold need little memory.
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

CHUNK_BYTES = 64 * 1024  # of output per chunk; with brotli up to half as much again
MOST_CODINGS = 4  # nested
MOST_PARTS = 1000  # gzip members or zstd frames; a thousand empty ones take milliseconds
MOST_TIMES = 200  # output bytes per input byte of a stream; JSON compresses to a tenth, zeros to a thousandth
FREE_BYTES = 1 << 20  # output of a stream before MOST_TIMES applies, since short answers may compress better
_READ_BYTES = 16 * 1024  # of input per step: the rest after a gzip member is copied for each member
_STREAM_CODINGS = frozenset(("gzip", "deflate"))  # other codings pass through to the client
_MOST_STREAM_CODINGS = 3
_WINDOW_LOG = 23  # 8 MiB, the limit for zstd in RFC 9659; larger windows would let attackers use memory
_GZIP_BEGINS = b"\x1f\x8b"


class UnknownCoding(Exception):
    """An unsupported coding; the message is its name."""


class WrongData(Exception):
    """Data that are invalid in the declared coding; the message has the coding and the fault."""


class TooLong(Exception):
    """The output exceeds a limit; the message names the limit."""


class Decoder:
    """Decodes one body of at most `limit_bytes`, strictly.

    `codings`: in the order in which they were applied, as returned by `codings_of`.
    """

    def __init__(self, codings: Sequence[str], limit_bytes: int) -> None:
        limits = [limit_bytes] + [2 * limit_bytes + CHUNK_BYTES] * (len(codings) - 1)
        pairs = zip(codings, limits, strict=True)
        self._stages: Sequence[_Stage] = [_Stage(name, limit, MOST_PARTS) for name, limit in pairs][::-1]

    def decode(self, piece: bytes) -> list[bytes]:
        """The output for a piece; blocks long if it is large. Raises WrongData or TooLong."""
        return [chunk for chunk in self.chunks(piece) if chunk]

    def chunks(self, piece: bytes) -> Iterator[bytes]:
        """The same in steps of bounded work; a step without output yields an empty chunk."""
        return _decoded(self._stages, piece)

    def end(self) -> None:
        """Finish. Raises WrongData if the data are incomplete."""
        for stage in self._stages:
            stage.end()


class StreamDecoder(Decoder):
    """Decodes a stream of any length, expanding at most MOST_TIMES, as leniently as browsers do.

    Padding after gzip or deflate data, and empty data, are accepted.
    """

    def __init__(self, codings: Sequence[str]) -> None:
        self._whole = _Growth()
        self._stages = [_LenientStage(name) for name in reversed(codings)]

    @classmethod
    def of(cls, lines: Iterable[str]) -> StreamDecoder | None:
        """The decoder for the values of Content-Encoding headers; None if the stream passes through undecoded.

        It does without a coding, with one other than gzip and deflate, or with too many.
        """
        try:
            codings = codings_of(lines)
        except UnknownCoding:
            return None
        if not 0 < len(codings) <= _MOST_STREAM_CODINGS or not set(codings) <= _STREAM_CODINGS:
            return None
        return cls(codings)

    def chunks(self, piece: bytes) -> Iterator[bytes]:
        self._whole.take(len(piece))
        for chunk in super().chunks(piece):
            self._whole.give(len(chunk))
            yield chunk


def codings_of(lines: Iterable[str]) -> tuple[str, ...]:
    """The codings in the values of Content-Encoding headers, in the order in which they were applied.

    Raises UnknownCoding for an unsupported one, or for too many.
    """
    found = tuple(_ALIASES.get(name, name) for name in _named(lines))
    for name in found:
        if name not in TAKEN:
            raise UnknownCoding(name)
    if len(found) > MOST_CODINGS:
        raise UnknownCoding(f"{len(found)} nested codings")
    return found


def is_coded(lines: Iterable[str]) -> bool:
    """True if the values of Content-Encoding headers name any coding, supported or not."""
    return any(True for _ in _named(lines))


def _named(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        for name in line.split(","):
            if (bare := name.strip().lower()) not in {"", "identity"}:
                yield bare


def _decoded(stages: Sequence[_Stage], piece: bytes) -> Iterator[bytes]:
    if not stages:
        yield piece
        return
    for chunk in stages[0].feed(piece):
        if chunk:
            yield from _decoded(stages[1:], chunk)
        else:
            yield chunk


class _Stage:
    """One coding: one part, or several consecutive ones if the coding has such (gzip members, zstd frames)."""

    def __init__(self, coding: str, limit_bytes: int, most_parts: int) -> None:
        self._coding = coding
        self._limit_bytes = limit_bytes
        self._most_parts = most_parts
        self._part = _BEGINNINGS[coding]()
        self._parts = 1
        self._given_bytes = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        for start in range(0, len(piece), _READ_BYTES):
            for chunk in self._decoded(piece[start : start + _READ_BYTES]):
                self._given_bytes += len(chunk)
                if self._given_bytes > self._limit_bytes:
                    raise TooLong(f"the data expand to more than {self._limit_bytes} bytes")
                yield chunk

    def end(self) -> None:
        if not self._part.eof:
            raise WrongData(f"{self._coding}: the data end too early")

    def _decoded(self, piece: bytes) -> Iterator[bytes]:
        while piece and self._open_part(piece):
            try:
                yield from self._part.chunks(piece)
            except _ERRORS as error:
                raise WrongData(f"{self._coding}: {str(error)[0].lower()}{str(error)[1:]}") from error
            piece = self._part.unused_data if self._part.eof else b""

    def _open_part(self, piece: bytes) -> bool:
        """Open the part of this piece if necessary. Returns False if the piece is padding."""
        if self._part.eof:
            if not self._part.repeats:
                raise WrongData(f"{self._coding}: there are data after its end")
            if self._parts == self._most_parts:
                raise WrongData(f"{self._coding}: it has more than {self._most_parts} parts")
            self._part = _BEGINNINGS[self._coding]()
            self._parts += 1
        return True


class _LenientStage(_Stage):
    """A coding of a stream. Its own expansion is limited, too, since the next stage may shrink its output."""

    def __init__(self, coding: str) -> None:
        super().__init__(coding, limit_bytes=sys.maxsize, most_parts=sys.maxsize)
        self._growth = _Growth()
        self._has_data = self._is_over = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        self._has_data = self._has_data or bool(piece)
        self._growth.take(len(piece))
        for chunk in super().feed(piece):
            self._growth.give(len(chunk))
            yield chunk

    def end(self) -> None:
        if self._has_data:
            super().end()

    def _open_part(self, piece: bytes) -> bool:
        if self._part.eof and isinstance(self._part, _Zlib):
            follows = self._part.repeats and _GZIP_BEGINS.startswith(piece[:2])
            self._is_over = self._is_over or not follows
        return not self._is_over and super()._open_part(piece)


class _Growth:
    """The expansion of the data."""

    def __init__(self) -> None:
        self._most_bytes = FREE_BYTES
        self._bytes = 0

    def take(self, size_bytes: int) -> None:
        self._most_bytes += MOST_TIMES * size_bytes

    def give(self, size_bytes: int) -> None:
        """Count output. Raises TooLong beyond the limit."""
        self._bytes += size_bytes
        if self._bytes > self._most_bytes:
            raise TooLong(f"the compressed data expand to more than {MOST_TIMES} times their size")


class _Part(Protocol):
    """One gzip member, zstd frame or similar; `repeats`: another one may follow."""

    repeats: bool

    @property
    def eof(self) -> bool:
        """True after its end."""

    @property
    def unused_data(self) -> bytes:
        """The bytes after its end."""

    def chunks(self, piece: bytes) -> Iterator[bytes]:
        """All output for a piece. Raises the coding library's own error."""


class _Zlib:
    """A gzip member, or deflate data, raw or in zlib's format."""

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
        while True:
            chunk = self._stream.decompress(piece, CHUNK_BYTES)
            yield chunk
            piece = self._stream.unconsumed_tail
            if not piece and (len(chunk) < CHUNK_BYTES or self.eof):
                return


class _Deflate(_Zlib):
    """Deflate in zlib's format, as in the standard, or raw, as many servers send it; distinguished by two bytes."""

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
    unused_data = b""  # the decoder raises on data after the end

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    @property
    def eof(self) -> bool:
        return bool(self._stream.is_finished())

    def chunks(self, piece: bytes) -> Iterator[bytes]:
        chunk = self._stream.process(piece, output_buffer_limit=CHUNK_BYTES)
        yield chunk
        while not self.eof and (chunk or not self._stream.can_accept_more_data()):  # the decoder may have more output
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
