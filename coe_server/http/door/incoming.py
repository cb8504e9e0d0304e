"""A request's body as it comes in: not too large, not too slow, and nobody else waits while it is read."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fastapi import Request
from starlette.requests import ClientDisconnect

from coe_server.errors import BodyTooLarge, BodyTooSlow, RequestError
from coe_server.http.body import LARGE_BYTES, Body, read_body


class Incoming:
    """Reads bodies; the large ones aside, one after the other, so that the event loop goes on between two steps."""

    def __init__(self) -> None:
        self._aside = ThreadPoolExecutor(1, "large-bodies")

    async def body(self, request: Request, limit_bytes: int, timeout_seconds: float) -> Body:
        """The whole body. Raises what `read_all` and `read_body` raise."""
        raw = await read_all(request, limit_bytes, timeout_seconds)
        if len(raw) <= LARGE_BYTES:
            return read_body(raw)
        return await asyncio.get_running_loop().run_in_executor(self._aside, read_body, raw)


async def read_all(request: Request, limit_bytes: int, timeout_seconds: float) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as that is known, BodyTooSlow, RequestError if the client left."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _pieces(request, limit_bytes)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body was not whole after {timeout_seconds:g} s (http.body_seconds)") from error
    except ClientDisconnect as error:
        raise RequestError("the client left before its body was whole") from error


async def _pieces(request: Request, limit_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        pieces.append(piece)
    return b"".join(pieces)
