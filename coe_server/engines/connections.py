"""Connections to one server, kept for the next request as long as they are sure to be good. Knows no requests.

aiohttp reuses a connection unless it has noticed its end. What the system knows already is asked here.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import aiohttp
from aiohttp import ClientRequest, ClientTimeout
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from coe_server.upstream.reply import bound


class Pool(aiohttp.BaseConnector):
    """Gives out a connection again only while nothing has come on it: neither bytes nor its end."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        bound(self)
        self._given_out: WeakSet[ResponseHandler] = WeakSet()
        self._given_to: WeakKeyDictionary[ClientRequest, ResponseHandler] = WeakKeyDictionary()

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None, "a connection that was just given out"
            if protocol not in self._given_out or not _has_spoken(protocol):
                self._given_out.add(protocol)
                self._given_to[req] = protocol
                return connection
            connection.close()

    def retire(self, request: ClientRequest) -> None:
        """Use the connection that a request went over for no other, whether it is at rest already or not."""
        if (protocol := self._given_to.get(request)) is not None:
            protocol.force_close()


class _TcpPool(Pool, aiohttp.TCPConnector):
    pass


class _UnixPool(Pool, aiohttp.UnixConnector):
    pass


def pool(socket: Path | None, idle_seconds: float) -> Pool:
    """Without a limit. Unused connections are not used again after `idle_seconds`."""
    if socket is None:
        return _TcpPool(limit=0, keepalive_timeout=idle_seconds)
    return _UnixPool(str(socket), limit=0, keepalive_timeout=idle_seconds)


def _has_spoken(protocol: ResponseHandler) -> bool:
    """Has an unused connection been closed over there, or have bytes come that answer nothing?"""
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
class Way:
    """How a request goes to its server, as far as it has come."""

    connected: bool = False
    reused: bool = False


def way_watcher() -> aiohttp.TraceConfig:
    """What keeps the `Way` that a request has as its trace context."""
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
