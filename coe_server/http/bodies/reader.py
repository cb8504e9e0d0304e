"""Reads a request's body: within limits of size and time, and without blocking other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Message

from coe_server.errors import BodyTooLarge, BodyTooSlow, RequestError, UnsupportedCoding
from coe_server.http.apis import Api
from coe_server.http.bodies.body import LARGE_BYTES, ParsedRequest, parse_request
from coe_server.http.bodies.parser_process import ParserProcess
from coe_server.http.rate_limits import HOLD, Hold
from coe_server.upstream.content_coding import (
    CHUNK_BYTES,
    TAKEN,
    Decoder,
    TooLong,
    UnknownCoding,
    WrongData,
    codings_of,
)


@dataclass(frozen=True, slots=True)
class _Keys:
    """What an error adds to a limit: the key of the configuration that sets it, if one does."""

    size: str = ""
    seconds: str = ""


_CONFIGURED = _Keys(" (http.max_body)", " (http.body_seconds)")
_FIXED = _Keys()


class BodyReader:
    """Reads bodies; large ones in a process of their own, one after the other, so that the event loop is not
    blocked."""

    def __init__(self) -> None:
        self._process = ParserProcess()
        self._thread = ThreadPoolExecutor(1, "large-bodies")

    async def parsed(
        self, request: Request, api: Api | None, limit_bytes: int, timeout_seconds: float
    ) -> ParsedRequest:
        """The parsed body. Raises what `read_all` and `parse_request` raise."""
        pieces = await _pieces_in_time(request, limit_bytes, timeout_seconds, _CONFIGURED)
        if sum(map(len, pieces)) <= LARGE_BYTES:
            return parse_request(b"".join(pieces), api)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._process.read, pieces, api)

    def close(self) -> None:
        """End the process and the thread for large bodies, once the last one is read. Waits."""
        self._thread.submit(self._process.close)
        self._thread.shutdown()


async def read_all(request: Request, limit_bytes: int, timeout_seconds: float) -> bytes:
    """The whole body, within the endpoint's own limits. Raises BodyTooLarge as soon as that is known, BodyTooSlow, and
    RequestError if the client disconnected."""
    return b"".join(await _pieces_in_time(request, limit_bytes, timeout_seconds, _FIXED))


async def _pieces_in_time(request: Request, limit_bytes: int, timeout_seconds: float, keys: _Keys) -> list[bytes]:
    announced, hold = request.headers.get("content-length", ""), request.scope[HOLD]
    if announced.isdecimal():
        if int(announced) > limit_bytes:
            raise _too_large(limit_bytes, keys)
        hold.reach(int(announced))
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _pieces(request, hold, limit_bytes, keys)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body was not complete after {timeout_seconds:g} s{keys.seconds}") from error


async def _pieces(request: Request, hold: Hold, limit_bytes: int, keys: _Keys) -> list[bytes]:
    codings = _codings(request)
    if codings:
        return await _decoded_pieces(request, hold, Decoder(codings, limit_bytes), limit_bytes, keys)
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await _message(request)
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(limit_bytes, keys)
        hold.reach(size)
        pieces.append(piece)
    return pieces


async def _message(request: Request) -> Message:
    """The next piece of the body; without Starlette's generator, which costs each request as much as what it reads."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise RequestError("the client disconnected before its body was complete")
    return message


def _codings(request: Request) -> Sequence[str]:
    try:
        return codings_of(request.headers.getlist("content-encoding"))
    except UnknownCoding as error:
        taken = ", ".join(TAKEN)
        raise UnsupportedCoding(f"content-encoding {str(error)[:40]!r} is not supported; {taken} are") from error


async def _decoded_pieces(request: Request, hold: Hold, decoder: Decoder, limit_bytes: int, keys: _Keys) -> list[bytes]:
    """Decoded as it arrives, in a thread: little is held undecoded, and a decompression bomb is stopped early."""
    pieces: list[bytes] = []
    waiting = bytearray()
    size, more = 0, True
    try:
        while more:
            message = await _message(request)
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size > limit_bytes:
                raise _too_large(limit_bytes, keys)
            waiting += piece
            if len(waiting) >= CHUNK_BYTES:
                pieces += await asyncio.to_thread(decoder.decode, bytes(waiting))
                waiting.clear()
                hold.reach(sum(map(len, pieces)))
        pieces += await asyncio.to_thread(decoder.decode, bytes(waiting))
        hold.reach(sum(map(len, pieces)))
        decoder.end()
    except WrongData as error:
        raise RequestError(f"the body is not what its content-encoding says: {error}") from error
    except TooLong as error:
        raise _too_large(limit_bytes, keys) from error
    return pieces


def _too_large(limit_bytes: int, keys: _Keys) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit_bytes} bytes{keys.size}")
