"""The part of aiohttp's server that the stand-ins for engines use, over asyncio's streams.

A stand-in starts with a quarter of the processor time, because it does not import aiohttp. Knows no engine.
Requests must have a content-length; answers without one are chunked.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

GRACE_SECONDS = 60.0  # for answers in progress when the server ends, as in aiohttp
LONGEST_HEAD_BYTES = 1 << 16


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: Headers
    body: bytes
    out: asyncio.StreamWriter

    async def json(self) -> Any:
        return json.loads(self.body)


class Headers(dict[str, str]):
    """By lower-case names."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class StreamResponse:
    """An answer in pieces: `prepare`, then `write`."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, headers or {}
        self._out: asyncio.StreamWriter | None = None

    async def prepare(self, request: Request) -> None:
        self._out = request.out
        self._out.write(head(self.status, {**self.headers, "Transfer-Encoding": "chunked"}))
        await self._out.drain()

    async def write(self, piece: bytes) -> None:
        assert self._out is not None, "prepare comes first"
        self._out.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await self._out.drain()

    async def end(self, request: Request) -> None:
        request.out.write(b"0\r\n\r\n")
        await request.out.drain()


class Response(StreamResponse):
    """A whole answer."""

    def __init__(self, status: int = 200, text: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(status, {"Content-Type": "text/plain; charset=utf-8", **(headers or {})})
        self.body = text.encode()

    async def end(self, request: Request) -> None:
        request.out.write(head(self.status, {**self.headers, "Content-Length": str(len(self.body))}) + self.body)
        await request.out.drain()


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(status, json.dumps(value), {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


Handler = Callable[[Request], Awaitable[StreamResponse]]
Middleware = Callable[[Request, Handler], Awaitable[StreamResponse]]


def middleware(method: Any) -> Any:
    return method


def get(path: str, handler: Handler) -> tuple[str, str, Handler]:
    return "GET", path, handler


def post(path: str, handler: Handler) -> tuple[str, str, Handler]:
    return "POST", path, handler


@dataclass
class Application:
    middlewares: Sequence[Middleware] = ()
    routes: dict[tuple[str, str], Handler] = field(default_factory=dict)

    def add_routes(self, routes: Sequence[tuple[str, str, Handler]]) -> None:
        self.routes.update({(method, path): handler for method, path, handler in routes})

    async def answer(self, request: Request) -> StreamResponse:
        handler = self.routes.get((request.method, request.path))
        if handler is None:
            return Response(404, "404: Not Found")
        try:
            for one in self.middlewares:
                return await one(request, handler)
            return await handler(request)
        except Exception as error:  # noqa: BLE001  as aiohttp: the server goes on
            return Response(500, f"{type(error).__name__}: {error}")


class AppRunner:
    """Connections of an application, from `setup` to `cleanup`."""

    def __init__(self, app: Application, keepalive_timeout: float = 75.0) -> None:
        self._app, self._keepalive_timeout = app, keepalive_timeout
        self._answering: set[asyncio.Task[Any]] = set()
        self._connections: set[asyncio.StreamWriter] = set()
        self.server: asyncio.Server | None = None

    async def setup(self) -> None:
        """Do nothing: a site starts without preparation."""

    async def cleanup(self) -> None:
        """Accept no more connections; answers in progress have a minute to end."""
        if self.server is not None:
            self.server.close()
        if self._answering:
            await asyncio.wait(self._answering, timeout=GRACE_SECONDS)
        for connection in self._connections:
            connection.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
                while await self._one_request(reader, writer):
                    pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; True if the connection stays open."""
        async with asyncio.timeout(self._keepalive_timeout):
            first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = Headers((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest))
        assert "transfer-encoding" not in headers, "requests state their length"
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, target, _ = first.split(" ")
        url = urlsplit(target)
        request = Request(method, unquote(url.path), dict(parse_qsl(url.query)), headers, body, writer)
        task = asyncio.ensure_future(self._answered(request))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        await task
        return str(headers.get("connection", "")).lower() != "close"

    async def _answered(self, request: Request) -> None:
        await (await self._app.answer(request)).end(request)


class UnixSite:
    def __init__(self, runner: AppRunner, path: str) -> None:
        self._runner, self._path = runner, path

    async def start(self) -> None:
        serve = self._runner.serve
        self._runner.server = await asyncio.start_unix_server(serve, self._path, limit=LONGEST_HEAD_BYTES)


class SockSite:
    def __init__(self, runner: AppRunner, sock: socket.socket) -> None:
        self._runner, self._sock = runner, sock

    async def start(self) -> None:
        self._runner.server = await asyncio.start_server(self._runner.serve, sock=self._sock, limit=LONGEST_HEAD_BYTES)


BaseSite = UnixSite | SockSite
