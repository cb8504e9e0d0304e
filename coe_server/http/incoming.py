"""A request's body as it comes in: not too large, not too slow, and nobody else waits while it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from coe_server.errors import BodyTooLarge, BodyTooSlow, RequestError, UnsupportedCoding
from coe_server.http.apis import Surface
from coe_server.http.aside import Aside
from coe_server.http.body import LARGE_BYTES
from coe_server.http.question import Question, read_question
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
    """What a refusal adds to a limit: which key of the configuration sets it, where one does."""

    size: str = ""
    seconds: str = ""


_CONFIGURED = _Keys(" (http.max_body)", " (http.body_seconds)")
_FIXED = _Keys()


class Incoming:
    """Reads bodies; the large ones aside, one after the other, so that the event loop goes on meanwhile."""

    def __init__(self) -> None:
        self._aside = Aside()
        self._thread = ThreadPoolExecutor(1, "large-bodies")

    async def question(
        self, request: Request, surface: Surface | None, limit_bytes: int, timeout_seconds: float
    ) -> Question:
        """What the whole body asks. Raises what `read_all` and `read_question` raise."""
        pieces = await _pieces_in_time(request, limit_bytes, timeout_seconds, _CONFIGURED)
        if sum(map(len, pieces)) <= LARGE_BYTES:
            return read_question(b"".join(pieces), surface)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._aside.read, pieces, surface)

    def close(self) -> None:
        """End what was begun for large bodies, once the last of them is read. Waits."""
        self._thread.submit(self._aside.close)
        self._thread.shutdown()


async def read_all(request: Request, limit_bytes: int, timeout_seconds: float) -> bytes:
    """The whole body, within limits of the endpoint's own. Raises BodyTooLarge as soon as that is known, BodyTooSlow,
    RequestError if the client left."""
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
        raise BodyTooSlow(f"the body was not whole after {timeout_seconds:g} s{keys.seconds}") from error
    except ClientDisconnect as error:
        raise RequestError("the client left before its body was whole") from error


async def _pieces(request: Request, hold: Hold, limit_bytes: int, keys: _Keys) -> list[bytes]:
    codings = _codings(request)
    if codings:
        return await _decoded_pieces(request, hold, Decoder(codings, limit_bytes), limit_bytes, keys)
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(limit_bytes, keys)
        hold.reach(size)
        pieces.append(piece)
    return pieces


def _codings(request: Request) -> Sequence[str]:
    try:
        return codings_of(request.headers.getlist("content-encoding"))
    except UnknownCoding as error:
        taken = ", ".join(TAKEN)
        raise UnsupportedCoding(f"content-encoding {str(error)[:40]!r} is not taken here; {taken} are") from error


async def _decoded_pieces(request: Request, hold: Hold, decoder: Decoder, limit_bytes: int, keys: _Keys) -> list[bytes]:
    """As it comes and in a thread: little is held that is not decoded, and what expands without end ends early."""
    pieces: list[bytes] = []
    waiting = bytearray()
    size = 0
    try:
        async for piece in request.stream():
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
