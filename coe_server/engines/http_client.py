"""Plain HTTP/1.1 over httptools, to a Unix socket or an IP address; takes a third of aiohttp's processor time.

A pool of connections; a request is sent once. Host names, TLS and proxies need aiohttp (`http_elsewhere.py`), which
raises the same errors.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from pathlib import Path
from typing import cast

from coe_server.engines.http_exchange import (
    Body,
    Exchange,
    Headers,
    Lost,
    NotHttp,
    NotReached,
    PlainExchange,
    start_of_request,
)

Address = tuple[str, int]  # numeric IP address and port


class PlainClient:
    """A pool of connections to the server at `where`. An idle connection is not reused after `idle_seconds`."""

    def __init__(self, where: Path | Address, host: str, idle_seconds: float, connect_seconds: float) -> None:
        self._where = where
        self._host = host
        self._idle_seconds = idle_seconds
        self._connect_seconds = connect_seconds
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._idle: deque[Connection] = deque()  # the last used one at the end
        self.closed = False

    async def request(self, method: str, target: str, headers: Headers, body: Body) -> Exchange:
        """Send a request once; returns when the response headers have arrived. Raises the errors of `http_exchange`."""
        start = start_of_request(method, target, self._host, headers, body)
        connection = self._unused() or await self._connected()
        exchange = PlainExchange(connection, method)
        try:
            exchange.send(start, body)
            while not exchange.has_headers:
                await exchange.news()
        except BaseException:
            exchange.leave()
            raise
        return exchange

    async def close(self) -> None:
        self.closed = True
        for connection in tuple(self._connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # sockets close in the next iteration of the loop

    def give_back(self, connection: Connection) -> None:
        """Return a connection to the pool."""
        connection.idle_since = now = self._loop.time()
        self._idle.append(connection)
        while now - self._idle[0].idle_since > self._idle_seconds:
            self._idle.popleft().transport.abort()

    def forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _unused(self) -> Connection | None:
        """An idle connection that has received neither bytes nor its end since its last response; None without one."""
        while self._idle:
            connection = self._idle.pop()
            if self._loop.time() - connection.idle_since < self._idle_seconds and not connection.has_spoken():
                return connection
            connection.transport.abort()
        return None

    async def _connected(self) -> Connection:
        try:
            async with asyncio.timeout(self._connect_seconds):
                connection = await self._opened()
        except (OSError, TimeoutError) as error:
            raise NotReached(str(error) or type(error).__name__) from error
        if self.closed:
            connection.transport.abort()
            raise Lost(ConnectionError("its channel is closed"), has_begun=False, was_reused=False)
        self._connections.add(connection)
        return connection

    async def _opened(self) -> Connection:
        if isinstance(self._where, Path):
            _, connection = await self._loop.create_unix_connection(lambda: Connection(self), str(self._where))
        else:
            _, connection = await self._loop.create_connection(lambda: Connection(self), *self._where)
        return connection


class Connection(asyncio.Protocol):
    """The socket. Received bytes belong to the present exchange."""

    def __init__(self, client: PlainClient) -> None:
        self.client = client
        self.exchange: PlainExchange | None = None
        self.uses = 0
        self.idle_since = 0.0
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transport does not declare its class

    def data_received(self, data: bytes) -> None:
        if self.exchange is None or self.exchange.parser is None:
            self.transport.abort()  # unexpected bytes
            return
        try:
            self.exchange.parser.feed(data)
        except NotHttp as error:
            self.exchange.fail(error)
        self.exchange.announce()

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable.set()
        self.client.forget(self)
        if self.exchange is None or self.exchange.parser is None:
            return
        if exc is None and self.exchange.parser.ends_with_connection:
            self.exchange.complete(is_reusable=False)
        else:
            error = exc or ConnectionError("the server closed the connection")
            self.exchange.fail(Lost(error, self.exchange.parser.has_begun, self.uses > 1))
        self.exchange.announce()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def has_spoken(self) -> bool:
        """True if the server has closed an idle connection or sent bytes, even if the event loop has not seen it."""
        socket = self.transport.get_extra_info("socket")
        if self.transport.is_closing() or socket is None or socket.fileno() < 0:
            return True
        waiting = select.poll()
        waiting.register(socket.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(waiting.poll(0))
