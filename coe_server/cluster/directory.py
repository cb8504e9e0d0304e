"""Which nodes there are and at which addresses, and what the front knows of each. Each way to find them is a file;
fixed addresses are here.

A directory knows no expert: each node tells the front itself (`/node/events`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from coe_server.cluster.snapshot import ExpertOnNode, NodeSnapshot


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
