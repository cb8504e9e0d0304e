"""One connection to an engine: a request out, its answer back as it comes, then the next. Knows nothing of retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import httptools

from coe_server.engines.engine import EngineRequest

MOST_HEAD_BYTES = 64 * 1024
_ROOM_BYTES = 128 * 1024  # read ahead of whoever passes it on
_LEAST_FINAL_STATUS = 200  # below are interim answers, which are followed by another

Headers = list[tuple[bytes, bytes]]


class HttpConnection(asyncio.Protocol):
    """Made by an event loop. `ask` may be called again once `is_reusable`.

    Whatever ends the connection too early is raised as `ConnectionError`, from `ask` or from `chunks`.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.is_answered = False  # something of an answer has come since the last request
        self._parser: httptools.HttpResponseParser | None = None
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._head_bytes = 0
        self._in_head = False
        self._is_complete = False
        self._stays = False
        self._lost: ConnectionError | None = None
        self._news: asyncio.Future[None] | None = None

    async def ask(self, request: EngineRequest, head: bytes) -> None:
        """Send a request; returns when the head of its answer has come."""
        self._parser = httptools.HttpResponseParser(self)
        self._in_head, self.is_answered, self._is_complete, self._stays = True, False, False, False
        self._head_bytes, self.headers = 0, []
        self._transport.write(head + request.body if len(request.body) < _ROOM_BYTES else head)
        if len(request.body) >= _ROOM_BYTES:
            self._transport.write(request.body)
        while self._in_head:
            await self._hear()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body of the answer as it arrives."""
        while True:
            if self._pieces:
                piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                if self._held_bytes > _ROOM_BYTES and self._lost is None:
                    self._transport.resume_reading()
                self._held_bytes = 0
                yield piece
            elif self._is_complete:
                return
            else:
                await self._hear()

    @property
    def is_reusable(self) -> bool:
        """The last answer is complete, and the server has not closed the connection."""
        return self._is_complete and self._stays and self._lost is None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close it; an engine that is still at work sees that and stops."""
        self._lose(ConnectionError("the connection was given up"))
        self._transport.abort()

    async def _hear(self) -> None:
        if self._lost is not None:
            raise self._lost
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _lose(self, reason: ConnectionError) -> None:
        self._lost = self._lost or reason
        self._tell()

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass of it

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._is_complete:  # nobody asked
            self.abort()
            return
        self.is_answered = True
        self._head_bytes += len(data) if self._in_head else 0
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._lose(ConnectionError(f"it does not speak HTTP ({type(error).__name__})"))
            self._transport.abort()
        if self._in_head and self._head_bytes > MOST_HEAD_BYTES:
            self._lose(ConnectionError(f"its headers are longer than {MOST_HEAD_BYTES} bytes"))
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._ends_with_the_connection:
            self._is_complete = True
        self._lose(ConnectionError(str(exc) if exc else "the connection was closed"))

    @property
    def _ends_with_the_connection(self) -> bool:
        """A body whose length was not told."""
        if self._parser is None or self._in_head:
            return False
        return not any(name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in self.headers)

    # what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None, "it calls us"
        if not self._in_head:
            raise ValueError("a second answer to one request")  # to the parser, which stops
        self.status = self._parser.get_status_code()
        if self.status >= _LEAST_FINAL_STATUS:
            self._in_head = False
            self._tell()

    def on_body(self, body: bytes) -> None:
        before, self._held_bytes = self._held_bytes, self._held_bytes + len(body)
        self._pieces.append(body)
        if before <= _ROOM_BYTES < self._held_bytes:
            self._transport.pause_reading()
        self._tell()

    def on_message_complete(self) -> None:
        assert self._parser is not None, "it calls us"
        if self._in_head:
            self.headers = []  # of an interim answer
            return
        self._is_complete = True
        self._stays = self._parser.should_keep_alive()
        self._tell()
