"""The front's connection to one node: follows its event stream, and knows whether it may get a request.

Silence is counted in short steps, so that seconds in which this process itself stood still do not count.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import urlsplit

from coe_server.cluster.directory import KnownNode, NodeAddress
from coe_server.cluster.snapshot import PROTOCOL, NodeSnapshot, read_snapshot
from coe_server.config.addresses import in_url
from coe_server.engines.engine import EngineRequest, Tries
from coe_server.engines.http_channel import HttpChannel
from coe_server.errors import BadSnapshot, CoeError, EngineError, EngineRefused, EngineUnreachable, first_line
from coe_server.upstream.complaint import json_value

logger = logging.getLogger(__name__)

SILENT_SECONDS = 1.5  # three pulses: then it gets nothing new, so a dead node is unused within two seconds
# Four pulses: then answers that have begun end with an error, and what has no first word goes to another expert.
MUTE_SECONDS = 2.0
# Then its connections are broken off. A node short of processor time may be silent for seconds and go on: what has no
# first word yet, and no other node to go to, loses nothing by waiting for that.
LOST_SECONDS = 10.0
STEP_SECONDS = 0.1  # between two looks at the silence
_MOST_OF_A_STEP = 2 * STEP_SECONDS  # counted for one step, however long it took
_FIRST_WORD_SECONDS = 3.0  # from a new connection to its first snapshot
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 1.0  # between two tries to connect
_LONGEST_MESSAGE_BYTES = 16 << 20
_END_OF_EVENT = b"\n\n"


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


class NodeLink:
    """One node, as long as the directory lists it.

    `changed` is called with the experts of each change; with None if all of them changed, or if the node is now
    admitted or no longer admitted to requests.
    """

    def __init__(self, address: NodeAddress, access: Access, changed: Callable[[Collection[str] | None], None]) -> None:
        self.address = address
        self.drained = False
        self.snapshot: NodeSnapshot | None = None
        self._access = access
        self._changed = changed
        self._unusable: str | None = "no answer yet"
        self._silent_seconds = 0.0
        self._connected_seconds: float | None = None
        self._has_been_lost = True
        self._url: str | None = None  # with the address of its name
        self._channel: HttpChannel | None = None
        self._old: list[HttpChannel] = []  # answers of a node that stops are still on their way
        self._listening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.pending: set[Pending] = set()
        self._is_leaving = False
        self._idle = asyncio.Event()  # set while no request is pending
        self._idle.set()
        self.settled = asyncio.Event()  # set once it has answered, or has failed to

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def usable(self) -> bool:
        """True if it may get a new request."""
        return self._unusable is None and not self.drained

    @property
    def known(self) -> KnownNode:
        heard = None if self.snapshot is None else self._silent_seconds
        return KnownNode(self.address, self.snapshot, self._unusable, self.drained, heard, self._connected_seconds)

    @property
    def access(self) -> Access:
        return self._access

    @property
    def channel(self) -> HttpChannel:
        """The connections for requests; they break when the node is lost. Raises EngineUnreachable before the first
        contact."""
        if self._channel is None:
            if self._url is None:
                raise EngineUnreachable(f"node '{self.name}' could not be reached\n{self._unusable}")
            self._channel = self._opened(self._url)
        return self._channel

    async def run(self) -> None:
        """Follow the node until cancelled: connect again after each failure. Ends by itself after `leave`."""
        pause = _PAUSE_SECONDS
        try:
            while not self._is_leaving:
                self._listening = asyncio.create_task(self._listen())
                await asyncio.wait({self._listening})
                pause = _PAUSE_SECONDS if self._connected_seconds is not None else pause
                why, self._listening = _why(self._listening), None  # its error holds the whole exchange
                self._disconnected(why)
                await asyncio.sleep(pause)  # a backoff
                pause = min(1.5 * pause, _LONGEST_PAUSE_SECONDS)
            await self._idle.wait()
        finally:
            if self._listening is not None:
                self._listening.cancel()
            for channel in (*self._old, *([self._channel] if self._channel is not None else [])):
                await channel.close()

    def step(self, seconds: float) -> None:
        """Count this time as silence: some of it, and the node gets nothing new; more, and it is lost."""
        self._silent_seconds += min(seconds, _MOST_OF_A_STEP)
        if self._connected_seconds is not None:
            self._connected_seconds += seconds
        if self._has_been_lost or self._leaves:
            return
        if self._silent_seconds > LOST_SECONDS:
            self._lose()
        elif self.is_silent and self._unusable is None:
            self._tell(f"no pulse for {SILENT_SECONDS:g} s")

    def leave(self) -> None:
        """The directory lists it no more: do not follow it, and close its connections once its answers have ended."""
        self._is_leaving = True
        if self._listening is not None:
            self._listening.cancel()

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

    @property
    def is_silent(self) -> bool:
        """True if it has missed its pulses."""
        return self._silent_seconds > SILENT_SECONDS

    @property
    def is_mute(self) -> bool:
        """True if it has missed so many that its answers count as lost. One that stops may take its time."""
        return self._silent_seconds > MUTE_SECONDS and not self._leaves

    def refuse(self, why: str) -> None:
        """It does not take requests of this front. The next stream may change that."""
        self._tell(why)
        if self._listening is not None:
            self._listening.cancel()

    @property
    def _leaves(self) -> bool:
        """True if it said that it stops: then its last answers may take their time."""
        return self.snapshot is not None and self.snapshot.draining

    def _lose(self) -> None:
        """Break every connection to it, so that no request waits for an answer that may never come."""
        self._has_been_lost = True
        self._tell(f"no pulse for {LOST_SECONDS:g} s; its connections are closed")
        if self._listening is not None:
            self._listening.cancel()
        self._break(self._channel)
        self._channel = None

    def _break(self, channel: HttpChannel | None) -> None:
        if channel is not None:
            task = asyncio.create_task(channel.close())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _disconnected(self, why: str | None) -> None:
        self._connected_seconds = None
        self.settled.set()
        if why is not None:
            self._tell(why)

    def _tell(self, why: str | None) -> None:
        if why != self._unusable:
            if why is None:
                logger.info("node '%s' takes requests", self.name)
            else:
                logger.warning("node '%s' (%s) gets nothing new: %s", self.name, self.address.url, why)
            self._unusable = why
            self._changed(None)

    async def _listen(self) -> None:
        """One event stream, until it breaks or ends."""
        self._url = await self._looked_up()
        channel = self._opened(self._url)
        headers = (("Accept", "text/event-stream"), *self._access.headers)
        try:
            within = asyncio.timeout(_FIRST_WORD_SECONDS)
            async with within, channel.send(EngineRequest("GET", "/node/events", headers, b"")) as answer:
                if answer.status != 200:
                    raise EngineError(_refusal(answer.status))
                async for event, data in _events(answer.chunks()):
                    within.reschedule(None)
                    self._silent_seconds = 0.0
                    if event == "pulse":
                        self._welcome()
                    else:
                        self._hear(event, data)
        finally:
            await channel.close()

    def _hear(self, event: str, data: bytes) -> None:
        """Take over one message. Raises BadSnapshot."""
        if event not in {"snapshot", "changes"}:
            return
        news = read_snapshot(data)
        if event == "snapshot":
            self._begin(news)
        else:
            before = self.snapshot
            if before is None or news.sequence != before.sequence + 1:
                raise BadSnapshot(f"a node's snapshot: number {news.sequence} does not follow the last one")
            self.snapshot = replace(news, node=self.name, experts={**before.experts, **news.experts})
        self._welcome()
        self._changed(None if event == "snapshot" else news.experts)

    def _welcome(self) -> None:
        """It is heard: use it, unless what it said is against that."""
        told = self.snapshot
        if told is None:
            return
        if told.protocol != PROTOCOL:
            self._tell(
                f"it speaks protocol {told.protocol} (version {told.version}), this front {PROTOCOL}: "
                "upgrade all nodes, then the front"
            )
        elif told.draining:
            self._tell("it stops")
        else:
            self._tell(None)

    def _begin(self, snapshot: NodeSnapshot) -> None:
        """A new stream. Another process at the address has none of the old connections."""
        before, self.snapshot = self.snapshot, replace(snapshot, node=self.name)
        if before is not None and before.process != snapshot.process and self._channel is not None:
            if before.draining:
                self._old = [*self._old[-1:], self._channel]
            else:
                self._break(self._channel)
            self._channel = None
        self._has_been_lost = False
        self._connected_seconds = 0.0
        self.settled.set()

    async def _looked_up(self) -> str:
        """Its URL, for plain HTTP with the address of its name: that needs less processor time."""
        url = self.address.url.rstrip("/")
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            return url
        try:
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 80)
        except OSError as error:
            raise EngineError(f"its name is not found: {error.strerror or error}") from error
        return f"http://{in_url(str(found[0][4][0]))}:{parts.port or 80}"

    def _opened(self, url: str) -> HttpChannel:
        return HttpChannel(self.name, url, tls=self._access.tls, kind="node")


def _why(listening: asyncio.Task[None]) -> str | None:
    """Why the stream ended; None if it was broken off here, for a reason that is known."""
    if listening.cancelled():
        return None
    match listening.exception():
        case None:
            return "its event stream ended"
        case TimeoutError():
            return f"no snapshot within {_FIRST_WORD_SECONDS:g} s"
        case CoeError() as error:
            return str(error).replace("\n", ": ") if not isinstance(error, BadSnapshot) else first_line(str(error))
        case error:
            logger.error("the stream of a node failed", exc_info=error)
            return f"a fault of this server: {type(error).__name__}"


def _refusal(status: int) -> str:
    if status in {401, 403}:
        return (
            f"it does not accept this front's key ({status}); nodes[].api_key_env is the node's keys.node_key_env, "
            "or a key made by `coe keys add --node`"
        )
    if status == 404:
        return "it is no node (404); set role: node there"
    return f"it answered with status {status}"


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    """Name and data of each event. Raises BadSnapshot for an endless one."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        while (end := held.find(_END_OF_EVENT)) >= 0:
            lines, held = bytes(held[:end]).split(b"\n"), held[end + len(_END_OF_EVENT) :]
            fields = dict(line.split(b": ", 1) for line in lines if b": " in line)
            yield fields.get(b"event", b"").decode("latin-1"), fields.get(b"data", b"")
        if len(held) > _LONGEST_MESSAGE_BYTES:
            raise BadSnapshot(f"a node's snapshot is longer than {_LONGEST_MESSAGE_BYTES:,} bytes")


async def ask(link: NodeLink, path: str, within_seconds: float, method: str = "POST") -> bytes:
    """Ask a node for a move, or for what it knows. Returns the answer's body.

    Raises EngineRefused with the node's status and sentence, or EngineError without any.
    """
    request = EngineRequest(method, path, link.access.headers, b"")
    try:
        async with asyncio.timeout(within_seconds), link.channel.send(request) as answer:
            body = bytearray()
            async for chunk in answer.chunks():
                body += chunk[: _LONGEST_ANSWER_BYTES - len(body)]
    except TimeoutError as error:
        raise EngineError(f"node '{link.name}' did not answer within {within_seconds:g} s") from error
    if answer.status != 200:
        raise EngineRefused(f"node '{link.name}'", answer.status, error_of(bytes(body)).message)
    return bytes(body)


_LONGEST_ANSWER_BYTES = 512 << 10  # the end of a log, as JSON


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
