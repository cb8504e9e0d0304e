"""Which nodes there are and at which addresses, and what the front knows of each. Fixed addresses and those behind a
host name are here, Ray's are in `ray_directory.py`.

A directory knows no expert: each node tells the front itself (`/node/events`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from coe_server.cluster.snapshot import ExpertOnNode, NodeSnapshot
from coe_server.config.addresses import in_url

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """A node's name, which stays over its restarts, and the base URL of its server, e.g. `http://10.0.0.1:8081`."""

    name: str
    url: str


class NodeDirectory(Protocol):
    """The nodes that should be there. Whether they are, the front finds out itself."""

    def addresses(self) -> tuple[NodeAddress, ...]:
        """The nodes known now, with different names; no I/O."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Keep the addresses current until cancelled, and call `changed` after each change of them.

        A directory that cannot be reached keeps its last addresses and logs why.
        """


class StaticDirectory:
    """A `NodeDirectory` that never changes: the addresses stand in the configuration."""

    def __init__(self, addresses: Sequence[NodeAddress]) -> None:
        self._addresses = tuple(addresses)

    def addresses(self) -> tuple[NodeAddress, ...]:
        return self._addresses

    async def run(self, changed: Callable[[], None]) -> None:
        """Nothing to follow."""
        del changed
        await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class KnownNode:
    """The front's view of a node: its address, its last snapshot, and why it gets nothing new (None if it does).

    `seen_seconds` is the age of its last pulse, `connected_seconds` of its present stream; None without one.
    `drained`: an operator asked this front to send it nothing new.
    """

    address: NodeAddress
    snapshot: NodeSnapshot | None = None
    unusable: str | None = "no answer yet"
    drained: bool = False
    seen_seconds: float | None = None
    connected_seconds: float | None = None

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def usable(self) -> bool:
        """True if it may get a new request."""
        return self.unusable is None and not self.drained

    def expert(self, name: str) -> ExpertOnNode | None:
        """An expert as it told of it last."""
        return None if self.snapshot is None else self.snapshot.experts.get(name)


def usable(nodes: Iterable[KnownNode]) -> Iterator[NodeSnapshot]:
    """What those nodes told last that may get a new request."""
    for one in nodes:
        if one.usable and one.snapshot is not None:
            yield one.snapshot


LookUp = Callable[[str, int], Awaitable[Sequence[str]]]  # host, port -> addresses


async def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses of a name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class DnsDirectory:
    """A `NodeDirectory` that looks a name up every `seconds`. A node is named by its address.

    A look-up that fails, or that finds nothing, changes nothing: name servers fail more often than all nodes at once.
    """

    def __init__(self, host: str, port: int, scheme: str, seconds: float, find: LookUp = look_up) -> None:
        self._host = host
        self._port = port
        self._scheme = scheme
        self._seconds = seconds
        self._find = find
        self._found: tuple[str, ...] = ()
        self._has_failed = False

    def addresses(self) -> tuple[NodeAddress, ...]:
        return tuple(
            NodeAddress(_name(address), f"{self._scheme}://{in_url(address)}:{self._port}") for address in self._found
        )

    async def run(self, changed: Callable[[], None]) -> None:
        """Look again and again until cancelled."""
        while True:
            found = await self._look()
            if found and found != self._found:
                self._found = found
                changed()
            await asyncio.sleep(self._seconds)

    async def _look(self) -> tuple[str, ...]:
        try:
            found = tuple(sorted(set(await self._find(self._host, self._port))))
        except OSError as error:
            if not self._has_failed:
                logger.warning("nodes.host: '%s' is not found: %s; the last addresses stay", self._host, error)
            self._has_failed = True
            return ()
        self._has_failed = False
        return found


def _name(address: str) -> str:
    """An address as a name: IPv6 has colons, which names do not have."""
    return address.replace(":", "-").replace("%", "-").lstrip("-") or "node"
