"""HTTP to one engine, over a Unix socket or TCP: bodies pass through untouched. Knows nothing of what they say.

A request is sent once, whatever happens: what is lost may have been read over there, and been paid for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from coe_server.config.proxies import Detour, Proxy
from coe_server.engines.connections import Pool, Way, pool, way_watcher
from coe_server.engines.engine import EngineRequest
from coe_server.errors import ConnectionLost, EngineDied, EngineError, EngineUnreachable
from coe_server.upstream.complaint import json_value
from coe_server.upstream.content_coding import StreamDecoder, TooLong, WrongData
from coe_server.upstream.reply import LONGEST_HEADER_BYTES

IDLE_SECONDS = 30.0  # an unused connection is closed by us after this; the engine must wait longer
_IDLE_ELSEWHERE_SECONDS = 4.0  # servers wait five (uvicorn, Node) to seventy-five (nginx) and do not tell

_HOP_BY_HOP = (  # RFC 9110, section 7.6.1
    frozenset(("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"))
    | frozenset(("proxy-authenticate", "proxy-authorization", "proxy-connection"))
)
_SET_BY_CLIENT = frozenset(("host", "content-length"))
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # what the caller did not send
_CODED = frozenset(("content-encoding", "content-length"))  # of the body before it was decoded
_CONNECT_SECONDS = 10.0  # for name, connection, TLS and proxy together
_NOT_REACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
_NOT_SENDABLE = (ValueError, TypeError, aiohttp.NonHttpUrlClientError)  # what aiohttp raises for a header or an address
_QUOTED_CHARACTERS = 300  # of an engine's complaint
_LONGEST_CONTROL_BYTES = 1 << 20  # of the answer to a control call
_SENT_BYTES = 64 * 1024  # of a large body, at a time


@dataclass(frozen=True, slots=True)
class Reuse:
    """How long an unused connection is good, and what the loss of one that was used before means."""

    idle_seconds: float
    loss: type[EngineError]


OUR_ENGINES = Reuse(IDLE_SECONDS, EngineDied)  # they close no idle connection: they were told to wait longer
ELSEWHERE = Reuse(_IDLE_ELSEWHERE_SECONDS, ConnectionLost)


class HttpChannel:
    """A pool of connections to one server. Made inside the running loop, ended with `close`.

    What it raises says in its first line what a caller may read, and below it what only an operator may.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        socket: Path | None = None,
        reuse: Reuse = OUR_ENGINES,
        proxy: Proxy | None = None,
    ) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._loss = reuse.loss
        self._detour = Detour.of(proxy, base_url)
        connections = pool(socket, reuse.idle_seconds)
        self._session = aiohttp.ClientSession(
            connector=connections,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NOT_ADDED,
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
            max_line_size=LONGEST_HEADER_BYTES,
            max_field_size=LONGEST_HEADER_BYTES,
            middlewares=(partial(_once, connections),),
            trace_configs=[way_watcher()],
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
                answer = await self._control_answer(response, f"{method} {path}")
        except TimeoutError as error:
            raise EngineError(
                f"engine '{self._name}' did not answer {method} {path} within {timeout_seconds:.3g} s"
            ) from error
        if response.status != 200:
            quoted = answer[:_QUOTED_CHARACTERS].decode(errors="replace")
            raise EngineError(f"engine '{self._name}' answered {method} {path} with {response.status}\n{quoted}")
        try:
            return json_value(answer) if answer else None
        except ValueError as error:
            quoted = answer[:_QUOTED_CHARACTERS].decode(errors="replace")
            raise EngineError(f"engine '{self._name}' answered {method} {path} with no JSON\n{quoted}") from error

    async def _control_answer(self, response: HttpResponse, asked: str) -> bytes:
        answer = bytearray()
        async for chunk in response.chunks():
            answer += chunk
            if len(answer) > _LONGEST_CONTROL_BYTES:
                raise EngineError(
                    f"engine '{self._name}' answered {asked} with more than {_LONGEST_CONTROL_BYTES:,} bytes"
                )
        return bytes(answer)

    async def close(self) -> None:
        await self._session.close()

    async def _deliver(self, request: EngineRequest) -> aiohttp.ClientResponse:
        """Send it, once; the answer's head."""
        way = Way()
        try:
            return await self._sent(request, way)
        except _NOT_REACHED as error:
            raise EngineUnreachable(self._told("could not be reached", error)) from error
        except _Lost as lost:
            raise self._lost(lost.error, way) from lost.error
        except aiohttp.ClientResponseError as error:
            raise EngineError(self._told("answered with what is no HTTP", error)) from error
        except _NOT_SENDABLE as error:
            told = "cannot be asked: its address, or a header of the request, cannot be sent as it is"
            raise EngineError(self._told(told, type(error).__name__)) from error  # its words may show a secret
        except (aiohttp.ClientError, OSError) as error:
            raise EngineDied(self._told("did not take the request", error)) from error

    async def _sent(self, request: EngineRequest, way: Way) -> aiohttp.ClientResponse:
        if self._session.closed:
            raise _Lost(_CLOSED)
        headers, body = _end_to_end(request.headers, _SET_BY_CLIENT), request.body
        if not isinstance(body, bytes):
            headers += (("content-length", str(sum(map(len, body)))),)
        headers += tuple(self._detour.headers.items())
        return await self._session.request(
            request.method,
            self._base_url + request.path,
            headers=headers,
            data=(body or None) if isinstance(body, bytes) else _one_by_one(body),
            allow_redirects=False,
            trace_request_ctx=way,
            **self._detour.arguments,
        )

    def _lost(self, error: Exception, way: Way) -> EngineError:
        """What the loss of a connection means before the answer's head was there."""
        if self._session.closed:  # the engine is being stopped
            return EngineDied(self._told("did not take the request", _CLOSED))
        if not way.connected:
            return EngineUnreachable(self._told("could not be reached", error))
        if _has_begun(error):
            return EngineDied(self._told("broke off its answer", error))
        if not way.reused or self._loss is EngineDied:
            return EngineDied(self._told("did not take the request", error))
        return self._loss(
            self._told("closed its connection in place of an answer; the request was not sent again", error)
        )

    def _told(self, what: str, error: Exception | str) -> str:
        return f"expert '{self._name}' {what}\n{self._base_url}: {error or type(error).__name__}"


class HttpResponse:
    """An `EngineResponse` over aiohttp, plain where the coding of its body is known here."""

    def __init__(self, name: str, base_url: str, response: aiohttp.ClientResponse) -> None:
        self._name = name
        self._base_url = base_url
        self._response = response
        self._decoder = StreamDecoder.of(response.headers.getall("content-encoding", []))
        pairs = ((key.decode("latin-1"), value.decode("latin-1")) for key, value in response.raw_headers)
        self._headers = _end_to_end(tuple(pairs), frozenset() if self._decoder is None else _CODED)

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return self._headers

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                if self._decoder is None:
                    yield chunk
                    continue
                for piece in self._decoder.chunks(chunk):
                    if piece:
                        yield piece
                    await asyncio.sleep(0)  # a small chunk may have no end of pieces
            if self._decoder is not None:
                self._decoder.end()
        except (aiohttp.ClientError, OSError) as error:
            raise EngineDied(f"expert '{self._name}' broke off its answer\n{self._base_url}: {error}") from error
        except (WrongData, TooLong) as error:
            raise EngineError(
                f"expert '{self._name}' sent an answer that cannot be decompressed\n{self._base_url}: {error}"
            ) from error


class _Lost(Exception):
    """A connection that was lost, out of aiohttp's sight."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


_CLOSED = ConnectionError("its channel is closed")


async def _once(
    connections: Pool, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """aiohttp sends a GET or DELETE again on another connection when it meets the error of a lost one."""
    try:
        response = await handler(request)
        if response.status >= 500:  # uvicorn, for one, closes without a word where its application failed
            connections.retire(request)
        return response
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Lost(error) from error


def _has_begun(error: Exception) -> bool:
    """Had an answer begun? aiohttp then has what there was of its head as the message."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)


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
