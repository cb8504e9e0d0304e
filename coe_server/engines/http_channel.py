"""HTTP to one engine, over a Unix socket or TCP: bodies pass through untouched. Knows nothing of what they say."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import SOCK_STREAM
from typing import Any
from urllib.parse import urlsplit

import aiohappyeyeballs

from coe_server.engines.engine import EngineRequest
from coe_server.engines.http_connection import HttpConnection
from coe_server.errors import EngineDied, EngineError

IDLE_SECONDS = 30.0  # an unused connection is closed by us after this; the engine must wait longer

_HOP_BY_HOP = (  # RFC 9110, section 7.6.1
    frozenset(("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"))
    | frozenset(("proxy-authenticate", "proxy-authorization", "proxy-connection"))
)
_SET_BY_CLIENT = frozenset(("host", "content-length"))
_CONNECT_SECONDS = 10.0
_NEXT_ADDRESS_SECONDS = 0.25  # RFC 8305: a name's second address is tried while the first does not answer
_QUOTED_CHARACTERS = 300  # of an engine's complaint


class HttpChannel:
    """A pool of connections to one server. Used inside one running loop, ended with `close`."""

    def __init__(self, name: str, base_url: str, socket: Path | None = None) -> None:
        self._name = name
        self._server = urlsplit(base_url.rstrip("/"))
        self._socket = socket
        self._tls = ssl.create_default_context() if self._server.scheme == "https" else None
        self._connections: set[HttpConnection] = set()
        self._idle: dict[HttpConnection, asyncio.TimerHandle] = {}  # the newest last
        self._closed = False

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[HttpResponse]:
        """Pass one request on. Leaving the context before the body ended closes the connection: the engine aborts."""
        connection = await self._deliver(request)
        try:
            yield HttpResponse(self._name, connection)
        finally:
            self._let_go(connection)

    async def ask(self, method: str, path: str, timeout_seconds: float, payload: Any = None) -> Any:
        """One short control call; the JSON of its answer. Raises `EngineError` if it is late or not 200."""
        body = b"" if payload is None else json.dumps(payload).encode()
        headers = (("content-type", "application/json"),) if payload is not None else ()
        request = EngineRequest(method, path, headers, body)
        try:
            async with asyncio.timeout(timeout_seconds), self.send(request) as response:
                answer = b"".join([chunk async for chunk in response.chunks()])
        except TimeoutError as error:
            raise EngineError(
                f"engine '{self._name}' did not answer {method} {path} within {timeout_seconds:.3g} s"
            ) from error
        if response.status != 200:
            quoted = answer[:_QUOTED_CHARACTERS].decode(errors="replace")
            raise EngineError(f"engine '{self._name}' answered {method} {path} with {response.status}: {quoted}")
        return json.loads(answer) if answer else None

    async def close(self) -> None:
        self._closed = True
        for connection in tuple(self._connections):
            self._drop(connection)

    async def _deliver(self, request: EngineRequest) -> HttpConnection:
        """Try again, once, where the engine closed an idle connection just as we reused it (RFC 9112, 9.3.1)."""
        head = self._head(request)
        kept = self._kept()
        if kept is not None:
            try:
                return await self._asked(kept, request, head)
            except OSError as error:
                if kept.is_answered:
                    raise self._undelivered(error) from error
        try:
            return await self._asked(await self._connected(), request, head)
        except OSError as error:
            raise self._undelivered(error) from error

    async def _asked(self, connection: HttpConnection, request: EngineRequest, head: bytes) -> HttpConnection:
        try:
            await connection.ask(request, head)
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _head(self, request: EngineRequest) -> bytes:
        server = self._server
        host = server.netloc.rpartition("@")[2]
        lines = [f"{request.method} {server.path}{request.path} HTTP/1.1", f"Host: {host}"]
        lines += (f"{name}: {value}" for name, value in _end_to_end(request.headers, _SET_BY_CLIENT))
        if request.body or request.method == "POST":
            lines.append(f"Content-Length: {len(request.body)}")
        return "\r\n".join((*lines, "\r\n")).encode("latin-1")

    def _kept(self) -> HttpConnection | None:
        while self._idle:
            connection, timer = self._idle.popitem()
            timer.cancel()
            if connection.is_reusable:
                return connection
            self._drop(connection)
        return None

    async def _connected(self) -> HttpConnection:
        if self._closed:  # between two attempts, too: the engine is being stopped
            raise ConnectionError("its channel is closed")
        async with asyncio.timeout(_CONNECT_SECONDS):
            connection = await self._open()
        self._connections.add(connection)
        return connection

    async def _open(self) -> HttpConnection:
        loop, server = asyncio.get_running_loop(), self._server
        if self._socket is not None:
            return (await loop.create_unix_connection(HttpConnection, str(self._socket)))[1]
        port = server.port or (443 if self._tls else 80)
        found = await loop.getaddrinfo(server.hostname, port, type=SOCK_STREAM)
        sock = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
        name = server.hostname if self._tls else None
        return (await loop.create_connection(HttpConnection, sock=sock, ssl=self._tls, server_hostname=name))[1]

    def _let_go(self, connection: HttpConnection) -> None:
        """Keep it for the next request, if it can have one."""
        if self._closed or not connection.is_reusable:
            self._drop(connection)
            return
        loop = asyncio.get_running_loop()
        self._idle[connection] = loop.call_later(IDLE_SECONDS, self._drop, connection)

    def _drop(self, connection: HttpConnection) -> None:
        timer = self._idle.pop(connection, None)
        if timer is not None:
            timer.cancel()
        self._connections.discard(connection)
        connection.abort()

    def _undelivered(self, error: Exception) -> EngineDied:
        return EngineDied(f"engine '{self._name}' did not take the request: {error or type(error).__name__}")


class HttpResponse:
    """An `EngineResponse` over one connection."""

    def __init__(self, name: str, connection: HttpConnection) -> None:
        self._name = name
        self._connection = connection
        self.status = connection.status
        pairs = tuple((key.decode("latin-1"), value.decode("latin-1")) for key, value in connection.headers)
        self.headers = _end_to_end(pairs, frozenset())

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._connection.chunks():
                yield chunk
        except OSError as error:
            raise EngineDied(f"engine '{self._name}' broke off its answer: {error}") from error


def _end_to_end(headers: tuple[tuple[str, str], ...], also_dropped: frozenset[str]) -> tuple[tuple[str, str], ...]:
    named = {
        option.strip().lower() for name, value in headers if name.lower() == "connection" for option in value.split(",")
    }
    dropped = _HOP_BY_HOP | also_dropped | named
    return tuple((name, value) for name, value in headers if name.lower() not in dropped)
