"""HTTP to one engine, local or remote; maps failures to errors. Bodies are not changed.

A request is never sent twice: the server may have read, and charged for, a request whose connection was lost.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from coe_server.config.addresses import numeric_host
from coe_server.config.proxies import Detour, Proxy
from coe_server.engines.engine import EngineRequest
from coe_server.engines.http_client import Address, PlainClient
from coe_server.engines.http_elsewhere import ElsewhereClient
from coe_server.engines.http_exchange import Exchange, Lost, NotHttp, NotReached, NotSendable
from coe_server.errors import CoeError, ConnectionLost, EngineDied, EngineError, EngineUnreachable
from coe_server.upstream.complaint import json_value
from coe_server.upstream.content_coding import StreamDecoder, TooLong, WrongData, is_coded

IDLE_SECONDS = 30.0  # idle connections are closed after this; the engine must keep them longer
_IDLE_ELSEWHERE_SECONDS = 4.0  # unannounced, servers close after 5 s (uvicorn, Node) to 75 s (nginx)

_HOP_BY_HOP = (  # RFC 9110, section 7.6.1
    frozenset(("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"))
    | frozenset(("proxy-authenticate", "proxy-authorization", "proxy-connection"))
)
_SET_BY_CLIENT = frozenset(("host", "content-length"))
_CODED = frozenset(("content-encoding", "content-length"))  # describe the body before decoding
_NO_CODING = frozenset(("content-encoding",))  # empty or `identity`, which is for Accept-Encoding (RFC 9110, 8.4.1)
_CONNECT_SECONDS = 10.0  # name look-up, connection, TLS and proxy together
_QUOTED_CHARACTERS = 300  # of an engine's error message
_LONGEST_CONTROL_BYTES = 1 << 20  # of the answer to a control call


@dataclass(frozen=True, slots=True)
class Reuse:
    """How long an idle connection may be reused, and the error if a reused connection is lost."""

    idle_seconds: float
    loss: type[EngineError]


OUR_ENGINES = Reuse(IDLE_SECONDS, EngineDied)  # they keep idle connections longer, by their settings
ELSEWHERE = Reuse(_IDLE_ELSEWHERE_SECONDS, ConnectionLost)


class HttpChannel:
    """A pool of connections to one server. Create it in the running loop; end it with `close`.

    The first line of its errors is for clients; further lines are for the operator only.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        socket: Path | None = None,
        reuse: Reuse = OUR_ENGINES,
        proxy: Proxy | None = None,
        tls: ssl.SSLContext | None = None,
        kind: str = "expert",
    ) -> None:
        """`kind` and `name`: what is behind it, for messages. `tls`: which certificates count; default the system's."""
        self._name = name
        self._shown = f"{kind} '{name}'"
        self._base_url = base_url.rstrip("/")
        self._loss = reuse.loss
        self._prefix = ""  # of every path
        self._client: PlainClient | ElsewhereClient
        where = socket if socket is not None else _plain_address(self._base_url) if proxy is None else None
        if where is not None:
            host, slash, path = self._base_url.partition("://")[2].partition("/")
            self._prefix = slash + path
            host = _ZONE.sub("", host)  # says nothing to the server (RFC 6874, 4)
            self._client = PlainClient(where, host, reuse.idle_seconds, _CONNECT_SECONDS)
        else:
            detour = Detour.of(proxy, base_url)
            self._client = ElsewhereClient(self._base_url, reuse.idle_seconds, _CONNECT_SECONDS, detour, tls)

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[HttpResponse]:
        """Send one request. Leaving the context before the end of the body closes the connection; the engine aborts."""
        exchange = await self._deliver(request)
        try:
            yield HttpResponse(self._shown, self._base_url, exchange)
        finally:
            exchange.leave()

    async def ask(
        self,
        method: str,
        path: str,
        timeout_seconds: float,
        payload: Any = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Any:
        """Make a short control call; returns its JSON answer. Raises `EngineError` on a timeout or an error status."""
        body = b"" if payload is None else json.dumps(payload).encode()
        of_json = (("content-type", "application/json"),) if payload is not None else ()
        request = EngineRequest(method, path, (*of_json, *headers), body)
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
            raise EngineError(f"engine '{self._name}' answered {method} {path} without JSON\n{quoted}") from error

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
        await self._client.close()

    async def _deliver(self, request: EngineRequest) -> Exchange:
        """Send it once; returns when the response headers have arrived."""
        if self._client.closed:
            raise EngineDied(self._told("did not take the request", _CLOSED))
        headers = _end_to_end(request.headers, _SET_BY_CLIENT)
        try:
            return await self._client.request(request.method, self._prefix + request.path, headers, request.body)
        except NotReached as error:
            raise EngineUnreachable(self._told("could not be reached", error)) from error
        except Lost as error:
            raise _callers_own(request) or self._lost(error) from error
        except NotHttp as error:
            raise EngineError(self._told("did not answer with valid HTTP", error)) from error
        except NotSendable as error:
            told = "cannot be reached: its address or a request header is invalid in HTTP"
            raise EngineError(self._told(told, error)) from error

    def _lost(self, error: Lost) -> EngineError:
        """The error for a connection lost before the response headers arrived."""
        if self._client.closed:  # the engine is being stopped
            return EngineDied(self._told("did not take the request", _CLOSED))
        if error.has_begun:
            return EngineDied(self._told("broke off its answer", error))
        if not error.was_reused or self._loss is EngineDied:
            return EngineDied(self._told("did not take the request", error))
        return self._loss(self._told("closed the connection without an answer; the request was not sent again", error))

    def _told(self, what: str, error: Exception) -> str:
        return f"{self._shown} {what}\n{self._base_url}: {error}"


def _callers_own(request: EngineRequest) -> CoeError | None:
    """The client's own failure to send its body, which also ends the connection to the engine."""
    return None if isinstance(request.body, bytes | tuple) else request.body.failure


class HttpResponse:
    """An `EngineResponse`; a body in a known content coding is decoded."""

    def __init__(self, shown: str, base_url: str, exchange: Exchange) -> None:
        self.status = exchange.status
        self._shown = shown
        self._base_url = base_url
        self._exchange = exchange
        pairs = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in exchange.raw_headers)
        codings = [value for name, value in pairs if name.lower() == "content-encoding"]
        self._decoder = StreamDecoder.of(codings)
        untrue = _CODED if self._decoder is not None else frozenset() if is_coded(codings) else _NO_CODING
        self.headers = _end_to_end(pairs, untrue)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await self._exchange.read():
                if self._decoder is None:
                    yield chunk
                    continue
                for piece in self._decoder.chunks(chunk):
                    if piece:
                        yield piece
                    await asyncio.sleep(0)  # a small chunk may expand into many pieces
            if self._decoder is not None:
                self._decoder.end()
        except (Lost, NotHttp) as error:
            raise EngineDied(f"{self._shown} broke off its answer\n{self._base_url}: {error}") from error
        except (WrongData, TooLong) as error:
            raise EngineError(
                f"{self._shown} sent an answer that cannot be decompressed\n{self._base_url}: {error}"
            ) from error


def _plain_address(base_url: str) -> Address | None:
    """IP address and port of a server without TLS; None for a host name, which may have several addresses."""
    parts = urlsplit(base_url)
    if parts.scheme != "http" or "@" in parts.netloc:
        return None
    host = numeric_host(parts.hostname or "")
    return None if host is None else (host, parts.port or _HTTP_PORT)


_HTTP_PORT = 80
_ZONE = re.compile(r"%[^\]]*")  # of an IPv6 address
_CLOSED = ConnectionError("its channel is closed")


def _end_to_end(headers: tuple[tuple[str, str], ...], also_dropped: frozenset[str]) -> tuple[tuple[str, str], ...]:
    named = {
        option.strip().lower() for name, value in headers if name.lower() == "connection" for option in value.split(",")
    }
    dropped = _HOP_BY_HOP | also_dropped | named
    return tuple((name, value) for name, value in headers if name.lower() not in dropped)
