"""What a client of an endpoint does to get one whole answer: plain, never longer than it takes, from nowhere else.

Knows no API. A redirect is not followed: what is asked is meant for the address in the configuration alone.
"""

from __future__ import annotations

import asyncio

import aiohttp

from coe_server.answer_head import bound
from coe_server.connecting import LONGEST_HEADER_BYTES
from coe_server.upstream.content_coding import Decoder, TooLong, UnknownCoding, WrongData, codings_of

UNPACKED = {"Accept-Encoding": "identity"}  # to be sent with each request
_DECODED_BYTES = 1024  # at a time: they may stand for a megabyte


class UnusableBody(aiohttp.ClientPayloadError):
    """A body that is too long, or not in the coding that it says; the message is one sentence."""


def bounded_session(timeout_seconds: float) -> aiohttp.ClientSession:
    """For requests that take so long in all, and `plain_body` of their answers. Made inside the running loop."""
    connector = aiohttp.TCPConnector(limit=0)
    bound(connector)
    return aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        max_line_size=LONGEST_HEADER_BYTES,
        max_field_size=LONGEST_HEADER_BYTES,
    )


async def plain_body(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The body, decoded where it comes in a coding that was not asked for. Raises UnusableBody."""
    body = bytearray()
    try:
        codings = codings_of(response.headers.getall("Content-Encoding", ()))
        decoder = Decoder(codings, most_bytes) if codings else None
        async for chunk in response.content.iter_any():
            if decoder is None:
                body += chunk
            else:
                await _decode(decoder, chunk, body)
            if len(body) > most_bytes:
                raise TooLong
        if decoder is not None and body:
            decoder.end()
    except TooLong:
        raise UnusableBody(f"an answer of more than {most_bytes / 2**20:.3g} MiB") from None
    except (UnknownCoding, WrongData) as error:
        raise UnusableBody(f"an answer that cannot be decoded: {error}") from error
    return bytes(body)


async def _decode(decoder: Decoder, chunk: bytes, body: bytearray) -> None:
    for start in range(0, len(chunk), _DECODED_BYTES):
        for piece in decoder.decode(chunk[start : start + _DECODED_BYTES]):
            body += piece
        await asyncio.sleep(0)  # others have their turn
