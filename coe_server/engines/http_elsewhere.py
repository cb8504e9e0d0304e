"""HTTP to other servers with aiohttp: host names, TLS and proxies.

Prevents aiohttp from resending requests and from reusing connections that the server has closed.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import aiohttp
from aiohttp import ClientRequest, ClientTimeout
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from coe_server.config.proxies import Detour
from coe_server.engines.http_exchange import (
    SENT_BYTES,
    Body,
    Exchange,
    Headers,
    Lost,
    NotHttp,
    NotReached,
    NotSendable,
    size_of,
)
from coe_server.upstream.reply import LONGEST_HEADER_BYTES, bound

_READ_BYTES = 16 * 1024  # read size of a body; each read costs aiohttp 10 us
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # aiohttp must not add these
_NO_CONNECTION = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
_NO_REQUEST = (ValueError, TypeError, aiohttp.NonHttpUrlClientError)  # aiohttp's for an invalid header or address


class ElsewhereClient:
    """A pool of connections. An idle connection is not reused after `idle_seconds`.

    `connect_seconds` limits name look-up, proxy, TLS and connection together.
    """

    def __init__(
        self,
        base_url: str,
        idle_seconds: float,
        connect_seconds: float,
        detour: Detour,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._base_url = base_url
        self._detour = detour
        connections = _Pool(limit=0, keepalive_timeout=idle_seconds, ssl=True if tls is None else tls)
        self._session = aiohttp.ClientSession(
            connector=connections,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NOT_ADDED,
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds),
            max_line_size=LONGEST_HEADER_BYTES,
            max_field_size=LONGEST_HEADER_BYTES,
            read_bufsize=_READ_BYTES,
            middlewares=(partial(_once, connections),),
            trace_configs=[_way_watcher()],
        )

    @property
    def closed(self) -> bool:
        return self._session.closed

    async def request(self, method: str, target: str, headers: Headers, body: Body) -> Exchange:
        """Send a request once; returns when the response headers have arrived. Raises as `PlainClient.request` does."""
        way = _Way()
        try:
            return _Exchange(await self._sent(method, target, tuple(headers), body, way))
        except _NO_CONNECTION as error:
            raise NotReached(str(error) or type(error).__name__) from error
        except _LostInAiohttp as lost:
            if not way.connected and not self.closed:
                raise NotReached(str(lost.error) or type(lost.error).__name__) from lost.error
            raise Lost(lost.error, _has_begun(lost.error), way.reused) from lost.error
        except aiohttp.ClientResponseError as error:
            raise NotHttp(str(error)) from error
        except _NO_REQUEST as error:
            raise NotSendable(type(error).__name__) from error  # its text may contain a secret
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(error, has_begun=False, was_reused=False) from error

    async def close(self) -> None:
        await self._session.close()

    async def _sent(
        self, method: str, target: str, headers: tuple[tuple[str, str], ...], body: Body, way: _Way
    ) -> aiohttp.ClientResponse:
        if not isinstance(body, bytes):
            headers += (("content-length", str(size_of(body))),)
        return await self._session.request(
            method,
            self._base_url + target,
            headers=(*headers, *self._detour.headers.items()),
            data=_sent_body(body),
            allow_redirects=False,
            trace_request_ctx=way,
            **self._detour.arguments,
        )


class _Exchange:
    """An `Exchange` of aiohttp."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.raw_headers = response.raw_headers
        self._response = response

    async def read(self) -> bytes:
        try:
            body = await self._response.content.readany()
            await asyncio.sleep(0)  # let other tasks run, even if more has arrived
            return body
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(error, has_begun=True, was_reused=False) from error

    def leave(self) -> None:
        body = self._response.content
        if body.exception() is not None or not body.at_eof():
            self._response.close()


class _Pool(aiohttp.TCPConnector):
    """Reuses an idle connection only if it has received neither bytes nor its end.

    aiohttp checks only events that its loop has processed; this also asks the operating system.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        bound(self)
        self._given_out: WeakSet[ResponseHandler] = WeakSet()
        self._given_to: WeakKeyDictionary[ClientRequest, ResponseHandler] = WeakKeyDictionary()

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None, "a connection just taken from the pool"
            if protocol not in self._given_out or not _has_spoken(protocol):
                self._given_out.add(protocol)
                self._given_to[req] = protocol
                return connection
            connection.close()

    def retire(self, request: ClientRequest) -> None:
        """Exclude the request's connection from reuse, whether it is already idle or not."""
        if (protocol := self._given_to.get(request)) is not None:
            protocol.force_close()


class _LostInAiohttp(Exception):
    """Wraps the error of a lost connection, so that aiohttp does not send the request again."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


async def _once(
    connections: _Pool, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Send once: aiohttp would resend a GET or DELETE after the error of a lost connection."""
    try:
        response = await handler(request)
        if response.status >= 500:  # uvicorn closes the connection after a failure, unannounced
            connections.retire(request)
        return response
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _LostInAiohttp(error) from error


def _has_begun(error: Exception) -> bool:
    """True if the response had begun: then aiohttp's error contains the partial headers."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)


def _sent_body(body: Body) -> bytes | AsyncIterator[bytes | memoryview] | None:
    if isinstance(body, bytes):
        return body or None
    return _one_by_one(body) if isinstance(body, tuple) else body.pieces()


async def _one_by_one(pieces: tuple[bytes | memoryview, ...]) -> AsyncIterator[memoryview]:
    """A large body in pieces, without copies; other tasks run in between."""
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), SENT_BYTES):
            yield view[start : start + SENT_BYTES]
            await asyncio.sleep(0)


def _has_spoken(protocol: ResponseHandler) -> bool:
    """True if the server has closed an idle connection or sent unexpected bytes."""
    if protocol.should_close or not protocol.is_connected():
        return True
    assert protocol.transport is not None, "a transport that is connected"
    socket = protocol.transport.get_extra_info("socket")
    if socket is None or socket.fileno() < 0:
        return True
    waiting = select.poll()
    waiting.register(socket.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(waiting.poll(0))


@dataclass(slots=True)
class _Way:
    """The progress of a request on its way to the server."""

    connected: bool = False
    reused: bool = False


def _way_watcher() -> aiohttp.TraceConfig:
    """Updates the `_Way` that a request carries as its trace context."""
    watcher = aiohttp.TraceConfig()
    watcher.on_connection_create_start.append(_begins_anew)
    watcher.on_connection_create_end.append(_is_there)
    watcher.on_connection_reuseconn.append(_is_used_again)
    return watcher


async def _begins_anew(session: aiohttp.ClientSession, context: Any, params: Any) -> None:
    context.trace_request_ctx.connected = context.trace_request_ctx.reused = False


async def _is_there(session: aiohttp.ClientSession, context: Any, params: Any) -> None:
    context.trace_request_ctx.connected = True


async def _is_used_again(session: aiohttp.ClientSession, context: Any, params: Any) -> None:
    context.trace_request_ctx.connected = context.trace_request_ctx.reused = True
