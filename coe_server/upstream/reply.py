"""One whole answer of an endpoint, within bounds: interim answers (1xx), headers, body, time, Retry-After.

A redirect is not followed: what is asked is meant for the address in the configuration alone. aiohttp's client reads
interim answers without end, on the event loop; every connection of ours is made by `bound`. Knows no API.

Also here: the Retry-After header (RFC 9110, 10.2.3), read without trust, and the loop that repeats a request.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

import aiohttp
from aiohttp import BaseConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

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


MOST_INTERIM = 16  # of one answer: 100 once, 103 for a few hints
MOST_HEADERS = 128  # of one answer, with its trailers: as many as aiohttp reads
HEADERS_LIMIT_BYTES = 1 << 20  # with all interim answers
_READ_BYTES = 4 * 1024  # of the headers, at a time: a hundred interim answers fit


def bound(connector: BaseConnector) -> None:
    """Connections that this connector makes from now on read no headers beyond the bounds."""
    connector._factory = partial(_bounded, connector._loop)


class BoundedHeaders(ResponseHandler):
    """aiohttp's side of a connection; it fails where the headers of an answer exceed the bounds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim = 0
        self._header_bytes = 0
        self._has_headers = True  # between two answers there are none to bound

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent."""
        self._interim = self._header_bytes = 0
        self._has_headers = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        start = 0
        while not self._has_headers and start < len(data):
            piece = data[start : start + _READ_BYTES]
            start += len(piece)
            self._header_bytes += len(piece)
            if self._header_bytes > HEADERS_LIMIT_BYTES:
                self._fail(f"the headers of its answer are longer than {HEADERS_LIMIT_BYTES:,} bytes")
            if self._exception is not None:
                return
            super().data_received(piece)
        if start < len(data) or not data:
            super().data_received(data[start:] if start else data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        status = data[0].code
        if status == 101:
            self._fail("it switched protocols (101), which was not asked for")
        elif status < 100:
            self._fail(f"its status is {status}")
        elif status < 200:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                self._fail(f"more than {MOST_INTERIM} interim answers (1xx) before the answer")
        else:
            self._has_headers = True
        if self._exception is None:
            super().feed_data(data, size)

    def _fail(self, why: str) -> None:
        if self._exception is None:
            self.set_exception(HttpProcessingError(message=why))
            if self.transport is not None:
                self.transport.close()


def _bounded(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return BoundedHeaders(loop)


LONGEST_HEADER_BYTES = 64 * 1024  # of an answer, name and value; a content-security-policy alone may have ten thousand


def user_agent() -> str:
    """What this program calls itself: firewalls refuse requests that name no program."""
    return f"coe-server/{version('coe-server')}"


def why_not_connected(error: OSError) -> str:
    """Of a connection that asyncio tried, which puts its own words into `strerror`; a name's errors are negative."""
    known = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
    return (known or str(error)).lower()


Result = TypeVar("Result")

LONGEST_SECONDS = 86_400.0  # a day: a quota's; what asks for more is a mistake


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """From 0 to `LONGEST_SECONDS`, given as seconds or as a date; None where it says nothing."""
    seconds = _seconds(header or "", now)
    return min(max(0.0, seconds), LONGEST_SECONDS) if math.isfinite(seconds) else None


async def repeated(
    attempt: Callable[[], Awaitable[Result]], pause_seconds: Callable[[Result, int], float | None]
) -> tuple[Result, int]:
    """The last result and the number of attempts.

    After each attempt `pause_seconds(result, attempts)` gives the pause before the next one, or None to end.
    """
    attempts = 0
    while True:
        result = await attempt()
        attempts += 1
        seconds = pause_seconds(result, attempts)
        if seconds is None:
            return result, attempts
        if seconds > 0.0:
            await asyncio.sleep(seconds)


def backoff_seconds(attempts: int, first_seconds: float, longest_seconds: float) -> float:
    """The pause after this many attempts: `first_seconds`, doubled with each further one, up to the longest."""
    return min(longest_seconds, math.ldexp(first_seconds, min(attempts - 1, 64)))


def _seconds(header: str, now: datetime) -> float:
    try:
        return float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return math.nan
    return (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds()
