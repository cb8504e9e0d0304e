"""One request over plain HTTP/1.1 and its response: the bytes that are sent, and what is parsed within limits.

Bodies are neither decoded nor interpreted. The connection and its pool are `http_client.py`'s.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import httptools

from coe_server.engines.engine import StreamedBody
from coe_server.errors import CoeError
from coe_server.upstream.reply import HEADERS_LIMIT_BYTES, LAST_STATUS, LONGEST_HEADER_BYTES, MOST_HEADERS, MOST_INTERIM

if TYPE_CHECKING:
    from coe_server.engines.http_client import Connection

Body = bytes | tuple[bytes | memoryview, ...] | StreamedBody
Headers = Sequence[tuple[str, str]]

SENT_BYTES = 64 * 1024  # piece of a large body
_MOST_BUFFERED_BYTES = 128 * 1024  # of a response; beyond it reading pauses until half of it is consumed
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_TARGET = re.compile(r"/[\x21-\x7e]*")
_NOT_IN_A_VALUE = re.compile(r"[\r\n\0]")
_WITHOUT_BODY = frozenset(("GET", "HEAD", "OPTIONS"))


class NotReached(Exception):
    """No connection could be made: the server has not seen the request."""


class NotSendable(Exception):
    """The address or a header is invalid in HTTP; the message shows no value."""


class NotHttp(Exception):
    """The response is not valid HTTP/1.1, or exceeds the limits."""


class Lost(Exception):
    """A broken connection. `has_begun`: part of the response had arrived. `was_reused`: an earlier request used it."""

    def __init__(self, error: Exception, has_begun: bool, was_reused: bool) -> None:
        super().__init__(str(error) or type(error).__name__)
        self.has_begun = has_begun
        self.was_reused = was_reused


class Exchange(Protocol):
    """A request that was sent, and its response, whose headers have arrived."""

    @property
    def status(self) -> int: ...

    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    async def read(self) -> bytes:
        """Wait for at least one byte of the body and return all that has arrived; empty at its end. Raises `Lost`."""

    def leave(self) -> None:
        """Close the connection, unless the response is complete and the connection reusable."""


class PlainExchange:
    """An `Exchange`, filled by its parser."""

    def __init__(self, connection: Connection, method: str) -> None:
        self.status = 0
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.has_headers = False
        self.parser: _Parser | None = _Parser(self)
        self._connection = connection
        self._has_body = method != "HEAD"
        self._is_complete = self._is_reusable = self._is_paused = False
        self._chunks: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._failure: Exception | None = None
        self._news: asyncio.Future[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        connection.exchange = self
        connection.uses += 1

    def send(self, start: bytes, body: Body) -> None:
        if isinstance(body, bytes):
            self._connection.transport.write(start + body)
        else:  # in a task, since the server may already answer
            self._connection.transport.write(start)
            connection = self._connection
            sending = (
                _send_pieces(connection, body) if isinstance(body, tuple) else _send_stream(self, connection, body)
            )
            self._sending = asyncio.create_task(sending)

    async def read(self) -> bytes:
        while not self._chunks:
            if self._is_complete:
                return b""
            await self.news()
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered_bytes = 0
        if self._is_paused:
            self._is_paused = False
            self._connection.transport.resume_reading()
        return body

    def leave(self) -> None:
        connection = self._connection
        if connection.exchange is not self or self.parser is None:
            return
        self.parser.end()
        connection.exchange = self.parser = self._failure = None  # breaks reference cycles
        is_sent = self._sending is None or self._sending.done()
        if self._sending is not None:
            self._sending.cancel()
        is_failure = self.status >= 500  # uvicorn closes the connection after a failure, unannounced
        if self._is_reusable and is_sent and not is_failure and not self._is_paused:
            connection.client.give_back(connection)
        else:
            connection.transport.abort()

    def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Set the response headers, which have arrived."""
        self.status, self.raw_headers, self.has_headers = status, headers, True
        self._is_complete = not self._has_body

    def take(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered_bytes += len(body)
        if self._buffered_bytes > _MOST_BUFFERED_BYTES and not self._is_paused:
            self._is_paused = True
            self._connection.transport.pause_reading()

    def complete(self, is_reusable: bool) -> None:
        self._is_complete, self._is_reusable = True, is_reusable

    def fail(self, error: Exception) -> None:
        """Note an error. If it comes after a complete response, the response is kept and the connection closed."""
        self._failure = self._failure or error
        self._is_reusable = False
        self._connection.transport.abort()

    async def news(self) -> None:
        """Wait until something arrives. Raises the error of a failed exchange."""
        if self._failure is not None:
            raise self._failure
        if self.parser is None:
            raise Lost(ConnectionError("the response was abandoned before its end"), has_begun=True, was_reused=False)
        self._news = asyncio.get_running_loop().create_future()
        await self._news

    def announce(self) -> None:
        """Wake the reader that waits for news."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


async def _send_pieces(connection: Connection, pieces: tuple[bytes | memoryview, ...]) -> None:
    """Send a large body without copies; other tasks run in between."""
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), SENT_BYTES):
            await connection.writable.wait()
            if connection.transport.is_closing():
                return
            connection.transport.write(view[start : start + SENT_BYTES])
            await asyncio.sleep(0)


async def _send_stream(exchange: PlainExchange, connection: Connection, body: StreamedBody) -> None:
    """Send a body as it comes; if it ends early, the request fails."""
    try:
        async for piece in body.pieces():
            await connection.writable.wait()
            if connection.transport.is_closing():
                return
            connection.transport.write(piece)
    except (CoeError, OSError) as error:  # the client's fault, or the disk's
        exchange.fail(Lost(error, has_begun=exchange.has_headers, was_reused=False))
        exchange.announce()


class _Parser:
    """Callbacks of httptools: fill the exchange and enforce the limits."""

    def __init__(self, exchange: PlainExchange) -> None:
        self.has_begun = False
        self.ends_with_connection = False  # the body has neither length nor chunks
        self._exchange = exchange
        self._http = httptools.HttpResponseParser(self)
        self._http.set_dangerous_leniencies(  # as in aiohttp; smuggling is no risk in a response
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._headers: list[tuple[bytes, bytes]] = []
        self._trailers = 0
        self._interim = 0
        self._idle_bytes = 0  # headers, trailers and chunk framing since the last piece of a body

    def feed(self, data: bytes) -> None:
        """Parse received bytes. Raises `NotHttp`."""
        self.has_begun = True
        self._idle_bytes += len(data)
        try:
            self._http.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise NotHttp("an unexpected change of protocol (101)") from None
        except httptools.HttpParserError as error:
            raise error.__context__ if isinstance(error.__context__, NotHttp) else NotHttp(str(error)) from error
        if self._idle_bytes > HEADERS_LIMIT_BYTES:
            raise NotHttp(f"the headers of its answer are longer than {HEADERS_LIMIT_BYTES:,} bytes")

    def end(self) -> None:
        """Stop parsing."""
        del self._http

    def on_message_begin(self) -> None:
        if self._exchange.has_headers:
            raise NotHttp("a response without a request")
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) + len(value) > LONGEST_HEADER_BYTES:
            raise NotHttp(f"a header of its answer is longer than {LONGEST_HEADER_BYTES:,} bytes")
        if self._exchange.has_headers:
            self._trailers += 1
        else:
            self._headers.append((name, value))
        if len(self._headers) + self._trailers > MOST_HEADERS:
            raise NotHttp(f"its answer has more than {MOST_HEADERS} headers")

    def on_headers_complete(self) -> None:
        status = self._http.get_status_code()
        if status == 101:
            raise NotHttp("an unexpected change of protocol (101)")
        if not 100 <= status <= LAST_STATUS:
            raise NotHttp(f"invalid status {status}")
        if status < 200:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise NotHttp(f"more than {MOST_INTERIM} interim answers (1xx) before the answer")
            return
        self.ends_with_connection = not any(_delimits(name.lower(), value.lower()) for name, value in self._headers)
        self._exchange.begin(status, self._headers)

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        self._exchange.take(body)

    def on_message_complete(self) -> None:
        if self._exchange.has_headers:
            self._exchange.complete(self._http.should_keep_alive())


def _delimits(name: bytes, value: bytes) -> bool:
    """True if the header determines the end of the body."""
    return name == b"content-length" or (name == b"transfer-encoding" and value.rstrip().endswith(b"chunked"))


def size_of(body: Body) -> int:
    """Bytes of a body."""
    if isinstance(body, bytes):
        return len(body)
    return sum(map(len, body)) if isinstance(body, tuple) else body.size_bytes


def start_of_request(method: str, target: str, host: str, headers: Headers, body: Body) -> bytes:
    """The request line and the headers. Raises `NotSendable`."""
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise NotSendable("method or path")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _NOT_IN_A_VALUE.search(value):
            raise NotSendable("header")
        lines.append(f"{name}: {value}")
    size_bytes = size_of(body)
    if size_bytes or method not in _WITHOUT_BODY:
        lines.append(f"Content-Length: {size_bytes}")
    try:
        return "\r\n".join([*lines, "", ""]).encode()
    except UnicodeEncodeError:
        raise NotSendable("header") from None
