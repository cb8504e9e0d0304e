"""A request's body as it comes in: not too large, not too slow. Knows nothing of what it says."""

from __future__ import annotations

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from coe_server.errors import BodyTooLarge, BodyTooSlow, RequestError


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
