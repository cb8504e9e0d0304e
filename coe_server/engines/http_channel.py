"""HTTP to one engine, over a Unix socket or TCP: bodies pass through untouched. Knows nothing of what they say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp

from coe_server.engines.engine import EngineRequest
from coe_server.errors import EngineDied, EngineError

IDLE_SECONDS = 30.0  # an unused connection is closed by us after this; the engine must wait longer

_HOP_BY_HOP = (  # RFC 9110, section 7.6.1
    frozenset(("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"))
    | frozenset(("proxy-authenticate", "proxy-authorization", "proxy-connection"))
)
_SET_BY_CLIENT = frozenset(("host", "content-length"))
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # what the caller did not send
_CONNECT_SECONDS = 10.0
_NOT_REACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_QUOTED_CHARACTERS = 300  # of an engine's complaint
_SENT_BYTES = 64 * 1024  # of a large body, at a time


class HttpChannel:
    """A pool of connections to one server. Made inside the running loop, ended with `close`.

    What it raises says in its first line what a caller may read, and below it what only an operator may.
    """

    def __init__(self, name: str, base_url: str, socket: Path | None = None) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        connector: aiohttp.BaseConnector
        if socket is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
        else:
            connector = aiohttp.UnixConnector(str(socket), limit=0, keepalive_timeout=IDLE_SECONDS)
        reuse = aiohttp.TraceConfig()
        reuse.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NOT_ADDED,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            trace_configs=[reuse],
        )

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[HttpResponse]:
        """Pass one request on. Leaving the context before the body ended closes the connection: the engine aborts."""
        response = await self._deliver(request)
        try:
            yield HttpResponse(self._name, self._base_url, response)
        finally:
            if not response.content.at_eof():
                response.close()

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
            raise EngineError(f"engine '{self._name}' answered {method} {path} with {response.status}\n{quoted}")
        try:
            return json.loads(answer) if answer else None
        except ValueError as error:
            quoted = answer[:_QUOTED_CHARACTERS].decode(errors="replace")
            raise EngineError(f"engine '{self._name}' answered {method} {path} with no JSON\n{quoted}") from error

    async def close(self) -> None:
        await self._session.close()

    async def _deliver(self, request: EngineRequest) -> aiohttp.ClientResponse:
        """Try again, once, where the engine closed an idle connection just as we reused it (RFC 9112, 9.3.1)."""
        reused = SimpleNamespace(connection=False)
        try:
            return await self._attempt(request, reused)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if not reused.connection:
                raise self._undelivered(error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._undelivered(error) from error
        try:
            return await self._attempt(request, reused)
        except (aiohttp.ClientError, OSError) as error:
            raise self._undelivered(error) from error

    async def _attempt(self, request: EngineRequest, reused: SimpleNamespace) -> aiohttp.ClientResponse:
        if self._session.closed:  # between two attempts, too: the engine is being stopped
            raise self._undelivered(ConnectionError("its channel is closed"))
        headers, body = _end_to_end(request.headers, _SET_BY_CLIENT), request.body
        if not isinstance(body, bytes):
            headers += (("content-length", str(sum(map(len, body)))),)
        return await self._session.request(
            request.method,
            self._base_url + request.path,
            headers=headers,
            data=(body or None) if isinstance(body, bytes) else _one_by_one(body),
            allow_redirects=False,
            trace_request_ctx=reused,
        )

    def _undelivered(self, error: Exception) -> EngineDied:
        told = "could not be reached" if isinstance(error, _NOT_REACHED) else "did not take the request"
        return EngineDied(f"expert '{self._name}' {told}\n{self._base_url}: {error or type(error).__name__}")


class HttpResponse:
    """An `EngineResponse` over aiohttp."""

    def __init__(self, name: str, base_url: str, response: aiohttp.ClientResponse) -> None:
        self._name = name
        self._base_url = base_url
        self._response = response
        pairs = ((key.decode("latin-1"), value.decode("latin-1")) for key, value in response.raw_headers)
        self._headers = _end_to_end(tuple(pairs), frozenset())

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return self._headers

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise EngineDied(f"expert '{self._name}' broke off its answer\n{self._base_url}: {error}") from error


async def _one_by_one(pieces: tuple[bytes | memoryview, ...]) -> AsyncIterator[memoryview]:
    """A large body, uncopied; others have their turn in between."""
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), _SENT_BYTES):
            yield view[start : start + _SENT_BYTES]
            await asyncio.sleep(0)


def _end_to_end(headers: tuple[tuple[str, str], ...], also_dropped: frozenset[str]) -> tuple[tuple[str, str], ...]:
    named = {
        option.strip().lower() for name, value in headers if name.lower() == "connection" for option in value.split(",")
    }
    dropped = _HOP_BY_HOP | also_dropped | named
    return tuple((name, value) for name, value in headers if name.lower() not in dropped)


async def _note_reuse(session: aiohttp.ClientSession, context: SimpleNamespace, params: Any) -> None:
    context.trace_request_ctx.connection = True
