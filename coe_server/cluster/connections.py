"""The front's connections to one node: what they need, the requests on them, and how they end."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from coe_server.cluster.directory import NodeAddress
from coe_server.config.addresses import in_url
from coe_server.engines.engine import Tries
from coe_server.engines.http_channel import HttpChannel
from coe_server.errors import EngineError
from coe_server.upstream.complaint import json_value


@dataclass(frozen=True, slots=True)
class Access:
    """The key that a node takes, and the certificates for https."""

    key: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return () if self.key is None else (("Authorization", f"Bearer {self.key}"),)


@dataclass(slots=True, eq=False)
class Pending:
    """A request at a node. `limit` ends the attempt when another node should be asked instead."""

    expert: str
    tries: Tries
    limit: asyncio.Timeout

    @property
    def may_move(self) -> bool:
        """True until a part of the answer has gone to the caller."""
        return not self.tries.has_begun and not self.limit.expired()

    @property
    def gains_nothing(self) -> bool:
        """True if it need not wait for a node that may be lost: its caller can ask again, or another expert answers."""
        return (self.tries.has_begun or self.tries.has_substitute) and not self.limit.expired()

    def end(self) -> None:
        """End the attempt now."""
        self.limit.reschedule(asyncio.get_running_loop().time())


class NodeConnections:
    """The connections to a node. All requests share one channel; another process at the address gets a new one."""

    def __init__(self, address: NodeAddress, access: Access) -> None:
        self.access = access
        self.pending: set[Pending] = set()
        self._address = address
        self._url = address.url.rstrip("/")
        self._channel: HttpChannel | None = None
        self._old: list[HttpChannel] = []  # answers of a node that stops are still on their way
        self._closing: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()  # set while no request is pending
        self._idle.set()

    @property
    def channel(self) -> HttpChannel:
        """For requests; it breaks when the node is lost."""
        if self._channel is None:
            self._channel = self._opened()
        return self._channel

    async def for_stream(self) -> HttpChannel:
        """A new channel to the address that the node's name has now; the caller closes it. Raises EngineError."""
        self._url = await _looked_up(self._address.url.rstrip("/"))
        return self._opened()

    def _opened(self) -> HttpChannel:
        return HttpChannel(self._address.name, self._url, tls=self.access.tls, kind="node")

    @contextmanager
    def holds(self, pending: Pending) -> Iterator[None]:
        """For the time of one attempt at this node."""
        self.pending.add(pending)
        self._idle.clear()
        try:
            yield
        finally:
            self.pending.discard(pending)
            if not self.pending:
                self._idle.set()

    def retire(self) -> None:
        """New requests get new connections; answers on the old ones may end."""
        if self._channel is not None:
            self._old = [*self._old[-1:], self._channel]
            self._channel = None

    def break_off(self) -> None:
        """End every request, so that none waits for an answer that may never come."""
        if self._channel is not None:
            task = asyncio.create_task(self._channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            self._channel = None

    async def idle(self) -> None:
        """Return once no request is pending."""
        await self._idle.wait()

    async def close(self) -> None:
        for channel in (*self._old, *([self._channel] if self._channel is not None else [])):
            await channel.close()


async def _looked_up(url: str) -> str:
    """The same place, for plain HTTP with the address of its name: that needs less processor time."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        return url
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 80)
    except OSError as error:
        raise EngineError(f"its name is not found: {error.strerror or error}") from error
    return f"http://{in_url(str(found[0][4][0]))}:{parts.port or 80}"


class NodeError(NamedTuple):
    """What the body of a node's error says."""

    code: str
    message: str


def error_of(body: bytes) -> NodeError:
    """The error in a body of OpenAI's shape; without words where it is none."""
    try:
        told = json_value(body)
    except ValueError:
        told = None
    error = told.get("error") if isinstance(told, dict) else None
    said = error if isinstance(error, dict) else {}
    return NodeError(str(said.get("code", ""))[:100], str(said.get("message", "no reason given"))[:1000])
