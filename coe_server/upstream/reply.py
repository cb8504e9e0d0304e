"""Limits for a response of another server: interim responses (1xx), headers, body, time.

Redirects are not followed: requests are meant only for the configured address. aiohttp's client reads interim
responses without limit, blocking the event loop; `bound` prevents that. Independent of the APIs.

Also here: validation of Retry-After (RFC 9110, 10.2.3), and the loop that retries a request.
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

UNPACKED = {"Accept-Encoding": "identity"}  # sent with each request
_DECODED_BYTES = 1024  # per step: they may expand to a megabyte


class UnusableBody(aiohttp.ClientPayloadError):
    """A body that is too long or invalid in its content coding; the message is one sentence."""


def bounded_session(timeout_seconds: float) -> aiohttp.ClientSession:
    """A session with a total time limit per request; read bodies with `plain_body`. Create it in the running loop."""
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
    """The body, decoded if the server used a content coding. Raises UnusableBody."""
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
        await asyncio.sleep(0)  # let other tasks run


LAST_STATUS = 599  # RFC 9110, 15
MOST_INTERIM = 16  # per response: one 100 and a few 103 (hints)
MOST_HEADERS = 128  # per response with trailers: aiohttp's limit
HEADERS_LIMIT_BYTES = 1 << 20  # including all interim responses
_READ_BYTES = 4 * 1024  # of headers per step: has room for a hundred interim responses


def bound(connector: BaseConnector) -> None:
    """Make the connector's future connections enforce the header limits."""
    connector._factory = partial(_bounded, connector._loop)


class BoundedHeaders(ResponseHandler):
    """aiohttp's connection protocol, which fails if the headers of a response exceed the limits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim = 0
        self._header_bytes = 0
        self._has_headers = True  # no headers are expected between two responses

    def set_response_params(self, **params: Any) -> None:
        """Reset for the next request."""
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
            self._fail("an unexpected change of protocol (101)")
        elif not 100 <= status <= LAST_STATUS:
            self._fail(f"invalid status {status}")
        elif status < 200:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                self._fail(f"more than {MOST_INTERIM} interim answers (1xx) before the answer")
        else:
            self._has_headers = True
        if self._exception is None:
            super().feed_data(data, size)

    def connection_lost(self, exc: BaseException | None) -> None:
        """aiohttp takes a reset for the end of a body that has neither length nor chunks."""
        if exc is not None and self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(aiohttp.ClientPayloadError(str(exc) or type(exc).__name__))
        super().connection_lost(exc)

    def _fail(self, why: str) -> None:
        if self._exception is None:
            self.set_exception(HttpProcessingError(message=why))
            if self.transport is not None:
                self.transport.close()


def _bounded(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return BoundedHeaders(loop)


LONGEST_HEADER_BYTES = 64 * 1024  # name and value; a content-security-policy may have ten thousand


def user_agent() -> str:
    """The User-Agent: firewalls refuse requests without one."""
    return f"coe-server/{version('coe-server')}"


def why_not_connected(error: OSError) -> str:
    """The reason of a failed connection: asyncio replaces `strerror`, and errors of name look-up are negative."""
    known = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
    return (known or str(error)).lower()


Result = TypeVar("Result")

LONGEST_SECONDS = 86_400.0  # a day, as for a daily quota; more is taken for a mistake


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """Seconds (0 to `LONGEST_SECONDS`) from a number or a date; None if absent or invalid."""
    seconds = _seconds(header or "", now)
    return min(max(0.0, seconds), LONGEST_SECONDS) if math.isfinite(seconds) else None


async def repeated(
    attempt: Callable[[], Awaitable[Result]], pause_seconds: Callable[[Result, int], float | None]
) -> tuple[Result, int]:
    """Repeat `attempt`; returns the last result and the number of attempts.

    `pause_seconds(result, attempts)` returns the pause before the next attempt, or None to end.
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
    """Exponential backoff: `first_seconds`, doubled with each further attempt, up to `longest_seconds`."""
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
