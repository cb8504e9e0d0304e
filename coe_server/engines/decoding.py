"""Compressed answers -> plain bytes, each piece as it comes and none larger than PIECE_BYTES. Knows no connection."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

PIECE_BYTES = 64 * 1024  # decoded at a time: a kilobyte may stand for a megabyte
_READ_BYTES = 16 * 1024  # encoded, at a time: what follows a member of gzip is copied once for each member
_MOST_CODINGS = 3  # one upon another
MOST_TIMES = 200  # as many bytes as were sent; JSON is packed to a tenth, zeros to a thousandth
FREE_BYTES = 1 << 20  # before that is asked: an answer of one word, repeated, may be packed to less
_GZIP, _DEFLATE = frozenset(("gzip", "x-gzip")), "deflate"  # RFC 9110, section 8.4.1
_GZIP_BEGINS = b"\x1f\x8b"
_GZIP_FORMAT = 16 + zlib.MAX_WBITS


class Decoder:
    """All codings of one answer. Raises ValueError for data that are not of them."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        self._layers = layers
        self._growth = _Growth()

    @classmethod
    def of(cls, content_encodings: Sequence[str]) -> Decoder | None:
        """For the values of `Content-Encoding`; None where nothing is to decode, or a coding is not known here."""
        named = [coding.strip().lower() for value in content_encodings for coding in value.split(",")]
        codings = [coding for coding in named if coding not in {"", "identity"}]
        if not 0 < len(codings) <= _MOST_CODINGS or not set(codings) <= _GZIP | {_DEFLATE}:
            return None
        return cls([_Layer(coding in _GZIP) for coding in reversed(codings)])

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What these bytes, and the ones before them, tell by now; empty where a step of the work told nothing."""
        self._growth.took(data)
        for piece in _through(self._layers, data):
            self._growth.gave(piece)
            yield piece

    def end(self) -> None:
        """There are no more bytes. Raises ValueError where that is too early."""
        for layer in self._layers:
            layer.end()


class _Growth:
    """How much longer the data became."""

    def __init__(self) -> None:
        self._most_bytes = FREE_BYTES
        self._bytes = 0

    def took(self, encoded: bytes) -> None:
        self._most_bytes += MOST_TIMES * len(encoded)

    def gave(self, piece: bytes) -> None:
        """Raises ValueError where that is too much."""
        self._bytes += len(piece)
        if self._bytes > self._most_bytes:
            raise ValueError(f"the compressed data expand to more than {MOST_TIMES} times their size")


class _Layer:
    """One coding."""

    def __init__(self, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._member: zlib._Decompress | None = None
        self._is_over = False  # what follows is padding
        self._growth = _Growth()  # what it gives may be nothing to the next layer

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _READ_BYTES):
            encoded = data[start : start + _READ_BYTES]
            self._growth.took(encoded)
            yield from self._decoded(encoded)

    def end(self) -> None:
        """An answer without a body has none that could be cut short."""
        if self._member is not None and not self._member.eof:
            raise ValueError("the compressed data end too early")

    def _decoded(self, data: bytes) -> Iterator[bytes]:
        more = bool(data)
        while more and (member := self._open_member(data)) is not None:
            try:
                piece = member.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise ValueError(f"the compressed data are damaged ({error})") from error
            data = member.unused_data if member.eof else member.unconsumed_tail
            self._growth.gave(piece)
            yield piece
            more = bool(data) or (len(piece) == PIECE_BYTES and not member.eof)

    def _open_member(self, data: bytes) -> zlib._Decompress | None:
        """The one that is not at its end: of gzip there may be several; whatever else follows the last is padding."""
        if self._is_over:
            return None
        if self._member is None:
            self._member = zlib.decompressobj(_GZIP_FORMAT if self._is_gzip else _deflate_format(data))
        elif self._member.eof:
            if not self._is_gzip or not _GZIP_BEGINS.startswith(data[:2]):
                self._is_over = True
                return None
            self._member = zlib.decompressobj(_GZIP_FORMAT)
        return self._member


def _through(layers: Sequence[_Layer], data: bytes) -> Iterator[bytes]:
    if not layers:
        yield data
        return
    for piece in layers[0].pieces(data):
        if piece:
            yield from _through(layers[1:], piece)
        else:
            yield piece


def _deflate_format(data: bytes) -> int:
    """`deflate` is zlib's format (RFC 9110, section 8.4.1.2); many servers send the bare stream."""
    return zlib.MAX_WBITS if data[0] & 0xF == zlib.DEFLATED else -zlib.MAX_WBITS
