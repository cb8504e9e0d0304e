"""The front's link to one node: follows its event stream, and acts on what it says and on its silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection

from coe_server.cluster.connections import Access, NodeConnections
from coe_server.cluster.directory import KnownNode, NodeAddress
from coe_server.cluster.liveness import Liveness
from coe_server.cluster.snapshot import read_snapshot
from coe_server.engines.engine import EngineRequest
from coe_server.errors import BadSnapshot, CoeError, EngineError, first_line

logger = logging.getLogger(__name__)

_FIRST_WORD_SECONDS = 3.0  # from a new connection to its first snapshot
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 1.0  # between two tries to connect
_LONGEST_MESSAGE_BYTES = 16 << 20
_END_OF_EVENT = b"\n\n"


class NodeLink:
    """One node, as long as the directory lists it.

    `changed` is called with the experts of each change; with None if all of them changed, or if the node is now
    admitted or no longer admitted to requests.
    """

    def __init__(self, address: NodeAddress, access: Access, changed: Callable[[Collection[str] | None], None]) -> None:
        self.name = address.name
        self.address = address
        self.drained = False
        self.liveness = Liveness(address.name)
        self.connections = NodeConnections(address, access)
        self._changed = changed
        self._told = self.liveness.unusable  # why it gets nothing new, as it was logged last
        self._listening: asyncio.Task[None] | None = None
        self._is_leaving = False

    @property
    def known(self) -> KnownNode:
        one = self.liveness
        heard = None if one.snapshot is None else one.silent_seconds
        return KnownNode(self.address, one.snapshot, one.unusable, self.drained, heard, one.connected_seconds)

    async def run(self) -> None:
        """Follow the node until cancelled: connect again after each failure. Ends by itself after `leave`."""
        pause = _PAUSE_SECONDS
        try:
            while not self._is_leaving:
                self._listening = asyncio.create_task(self._listen())
                await asyncio.wait({self._listening})
                pause = _PAUSE_SECONDS if self.liveness.connected_seconds is not None else pause
                why, self._listening = _why(self._listening), None  # its error holds the whole exchange
                self.liveness.disconnect(why)
                self._tell()
                await asyncio.sleep(pause)  # a backoff
                pause = min(1.5 * pause, _LONGEST_PAUSE_SECONDS)
            await self.connections.idle()
        finally:
            self._end_stream()
            await self.connections.close()

    def step(self, seconds: float) -> None:
        """Count this time as silence; the connections of a node that is lost by it are broken off."""
        was_lost = self.liveness.is_lost
        self.liveness.step(seconds)
        if self.liveness.is_lost and not was_lost:
            self._end_stream()
            self.connections.break_off()
        self._tell()

    def leave(self) -> None:
        """The directory lists it no more: do not follow it, and close its connections once its answers have ended."""
        self._is_leaving = True
        self._end_stream()

    def refuse(self, why: str) -> None:
        """It does not take requests of this front. The next stream may change that."""
        self.liveness.unusable = why
        self._tell()
        self._end_stream()

    def _end_stream(self) -> None:
        if self._listening is not None:
            self._listening.cancel()

    def _tell(self) -> None:
        """Say so if it may get requests now and could not before, or the reverse."""
        why = self.liveness.unusable
        if why == self._told:
            return
        self._told = why
        if why is None:
            logger.info("node '%s' takes requests", self.name)
        else:
            logger.warning("node '%s' (%s) gets nothing new: %s", self.name, self.address.url, why)
        self._changed(None)

    async def _listen(self) -> None:
        """One event stream, until it breaks or ends."""
        channel = await self.connections.for_stream()
        headers = (("Accept", "text/event-stream"), *self.connections.access.headers)
        try:
            within = asyncio.timeout(_FIRST_WORD_SECONDS)
            async with within, channel.send(EngineRequest("GET", "/node/events", headers, b"")) as answer:
                if answer.status != 200:
                    raise EngineError(_refusal(answer.status))
                async for event, data in _events(answer.chunks()):
                    within.reschedule(None)
                    self._hear(event, data)
        finally:
            await channel.close()

    def _hear(self, event: str, data: bytes) -> None:
        """Take over one message. Raises BadSnapshot."""
        self.liveness.silent_seconds = 0.0
        if event == "snapshot":
            before, news = self.liveness.snapshot, read_snapshot(data)
            self.liveness.begin(news)
            if before is not None and before.process != news.process:  # it has none of the old connections
                (self.connections.retire if before.draining else self.connections.break_off)()
            self._tell()
            self._changed(None)
        elif event == "changes":
            news = read_snapshot(data)
            self.liveness.follow(news)
            self._tell()
            self._changed(news.experts)
        elif event == "pulse":
            self.liveness.welcome()
            self._tell()


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
