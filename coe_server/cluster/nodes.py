"""All nodes of a front: which there are, what they told, and what was sent to them.

A front holds no queue of its own: what no node takes is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator

from coe_server.cluster.choice import admits
from coe_server.cluster.connections import Access, Pending
from coe_server.cluster.directory import KnownNode, NodeAddress, NodeDirectory, usable
from coe_server.cluster.drained import Drained
from coe_server.cluster.experts import BestNodes, KnownExperts
from coe_server.cluster.link import NodeLink
from coe_server.cluster.liveness import STEP_SECONDS
from coe_server.cluster.sent import Sent
from coe_server.cluster.snapshot import NodeSnapshot
from coe_server.errors import RequestError

logger = logging.getLogger(__name__)


class Nodes:
    """`changed` is called after each change of what nodes told."""

    def __init__(
        self, directory: NodeDirectory, access: Callable[[NodeAddress], Access], drained: Drained | None = None
    ) -> None:
        self.sent = Sent()
        self.experts = KnownExperts()
        self.drained = Drained() if drained is None else drained
        self.changed: Callable[[], None] = lambda: None
        self._directory = directory
        self._access = access
        self._links: dict[str, NodeLink] = {}
        self.best = BestNodes(self._links, self.experts, self.sent)

    async def run(self) -> None:
        """Follow the directory and every node until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._follow(tasks)
            tasks.create_task(self._directory.run(lambda: self._follow(tasks)))
            tasks.create_task(self._count_silence())

    def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Connect to the nodes that the directory lists now, and to no others."""
        listed = {one.name: one for one in self._directory.addresses()}
        for name, link in tuple(self._links.items()):
            if listed.get(name) != link.address:
                self._links.pop(name).leave()
                self.experts.without(name)
                self.sent.forget(name)
                logger.info("node '%s' (%s) is no longer listed", name, link.address.url)
        for name, address in listed.items():
            if name not in self._links:
                self._links[name] = link = NodeLink(address, self._access(address), self.heard)
                link.drained = name in self.drained
                if link.drained:
                    logger.warning("node '%s' is drained: it gets nothing new until coe cluster resume", name)
                tasks.create_task(link.run())
        self.heard()

    async def _count_silence(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(STEP_SECONDS)
            now = loop.time()
            for link in tuple(self._links.values()):
                link.step(now - before)
                if link.liveness.is_silent:
                    end_what_gains_nothing(link, self.usable())
            before = now

    def heard(self, changed: Collection[str] | None = None) -> None:
        """A node, or what is known of one, has changed: these experts, or all of it."""
        self.best.forget(changed)
        self.experts.hear(link.liveness.snapshot for link in self._links.values() if link.liveness.snapshot is not None)
        self.changed()

    @property
    def settled(self) -> bool:
        """True once every listed node has answered, or has failed to."""
        return bool(self._links) and all(link.liveness.settled for link in self._links.values())

    def known(self) -> tuple[KnownNode, ...]:
        """Every listed node."""
        return tuple(link.known for link in self._links.values())

    def usable(self) -> Iterator[NodeSnapshot]:
        """The nodes that may get a new request."""
        return usable(self.known())

    def link(self, node: str) -> NodeLink:
        """The node of this name. Raises RequestError if the directory lists none."""
        if node not in self._links:
            raise RequestError(f"there is no node '{node}'; known: {', '.join(self._links) or 'none'}", "node")
        return self._links[node]


def end_what_gains_nothing(silent: NodeLink, usable: Iterable[NodeSnapshot]) -> None:
    """End the attempts at a silent node that another node can take over, a little later those that gain nothing by
    waiting; the others may wait for it to go on."""
    others = [one for one in usable if one.node != silent.name]
    for one in tuple(silent.connections.pending):
        there = silent.liveness.expert(one.expert)
        may_move = one.may_move and there is not None and not there.may_have_been_paid
        if (may_move and _takes(others, one)) or (silent.liveness.is_mute and one.gains_nothing):
            one.end()


def _takes(others: Iterable[NodeSnapshot], pending: Pending) -> bool:
    """True if another node admits requests for this expert, and this request has not failed there."""
    return any(admits(one, pending.expert) and one.node not in pending.tries.failed for one in others)
