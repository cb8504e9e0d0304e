"""All nodes of a front: which there are, which has an expert where, and which gets the next request.

A front holds no queue of its own: what no node takes is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from coe_server.cluster.choice import OverNodes, admits, choose, engine_of
from coe_server.cluster.directory import KnownNode, NodeAddress, NodeDirectory
from coe_server.cluster.drained import Drained
from coe_server.cluster.link import STEP_SECONDS, Access, NodeLink, ask
from coe_server.cluster.sent import Sent
from coe_server.cluster.snapshot import MOST_EXPERTS, ExpertOnNode, NodeSnapshot, TierOnNode
from coe_server.engines.engine import Tries
from coe_server.errors import EngineError, RequestError, UnknownModel
from coe_server.upstream.complaint import json_value

logger = logging.getLogger(__name__)

_MOST_CONVERSATIONS = 10_000  # whose node is remembered
_MOVE_SECONDS = 900.0  # a load from disk, behind the turns of others
_LOG_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class BestNode:
    """An expert over all nodes as the router sees it: tier and wait where it is least, or why none takes a request.

    `example` is the expert as one node has it, for what is the same on all of them.
    """

    example: ExpertOnNode
    tier: TierOnNode
    wait_seconds: float
    unavailable: str | None = None
    returns_seconds: float | None = None
    longest_tokens: int | None = None


class _Kept(NamedTuple):
    """What was told of an expert last; it holds while none of its engines has an open request."""

    best: BestNode
    engines: tuple[str, ...]


class Nodes:
    """`learn` is called for each expert that comes, by name, and `unlearn` for one that goes: a node that had it has it
    no more, and no other one has it. `changed` is called after each change of what nodes told.
    """

    def __init__(
        self, directory: NodeDirectory, access: Callable[[NodeAddress], Access], drained: Drained | None = None
    ) -> None:
        self.sent = Sent()
        self.outcomes: Counter[tuple[str, str]] = Counter()  # of requests, by node and outcome
        self.learn: Callable[[str], None] = lambda _: None
        self.unlearn: Callable[[str], None] = lambda _: None
        self.changed: Callable[[], None] = lambda: None
        self._directory = directory
        self._access = access
        self._links: dict[str, NodeLink] = {}
        self._experts: dict[str, ExpertOnNode] = {}  # every name that was ever told, as it was told last
        self._gone: set[str] = set()  # of these, the ones that were unlearned
        self._told: dict[str, NodeSnapshot] = {}  # what each node told last
        self._conversations: OrderedDict[bytes, str] = OrderedDict()
        self._drained = Drained() if drained is None else drained
        self._over: OverNodes | None = None  # until the next change
        self._kept: dict[str, _Kept] = {}  # of experts that have not changed, and have no open request

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
                self._told.pop(name, None)  # it may come back: its experts stay known
                self.sent.forget(name)
                logger.info("node '%s' (%s) is no longer listed", name, link.address.url)
        for name, address in listed.items():
            if name not in self._links:
                self._links[name] = link = NodeLink(address, self._access(address), self._heard)
                link.drained = name in self._drained
                if link.drained:
                    logger.warning("node '%s' is drained: it gets nothing new until coe cluster resume", name)
                tasks.create_task(link.run())
        self._forget()
        self.changed()

    async def _count_silence(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(STEP_SECONDS)
            now = loop.time()
            for link in tuple(self._links.values()):
                link.step(now - before)
                if link.is_silent:
                    self._move_away(link)
            before = now

    def _move_away(self, link: NodeLink) -> None:
        """End the attempts at a silent node that another node can take over, a little later those that gain nothing by
        waiting; the others may wait for it to go on."""
        for one in tuple(link.pending):
            there = link.snapshot.experts.get(one.expert) if link.snapshot is not None else None
            may_move = one.may_move and there is not None and not there.may_have_been_paid
            if (may_move and self._others(one.expert, link, one.tries)) or (link.is_mute and one.gains_nothing):
                one.end()

    def _others(self, expert: str, link: NodeLink, tries: Tries) -> bool:
        """True if another node admits requests for this expert, and this request has not failed there."""
        others = (one for one in self.usable() if one.node != link.name and one.node not in tries.failed)
        return any(admits(one, expert) for one in others)

    def _heard(self, changed: Collection[str] | None = None) -> None:
        self._forget(changed)
        lost: set[str] = set()
        for link in self._links.values():
            told, before = link.snapshot, self._told.get(link.name)
            if told is None or told is before or not told.understood:
                continue
            self._told[link.name] = told
            lost.update(before.experts.keys() - told.experts.keys() if before is not None else ())
            for name, expert in told.experts.items():
                self._hear_of(name, expert)
        for name in sorted(lost):
            if name not in self._gone and not any(name in one.experts for one in self._told.values()):
                self._gone.add(name)
                self.unlearn(name)
        self.changed()

    def _hear_of(self, name: str, expert: ExpertOnNode) -> None:
        is_new = name not in self._experts
        if is_new and len(self._experts) >= MOST_EXPERTS:
            return
        self._experts[name] = expert
        if is_new or name in self._gone:
            self._gone.discard(name)
            self.learn(name)

    def _forget(self, changed: Collection[str] | None = None) -> None:
        """Compute anew what is told of these experts, or of all."""
        self._over = None
        if changed is None:
            self._kept.clear()
        else:
            for name in changed:
                self._kept.pop(name, None)

    # what there is

    @property
    def experts(self) -> tuple[str, ...]:
        """Every expert that a node has told of since the start of this front, but for those that went."""
        return tuple(name for name in self._experts if name not in self._gone)

    @property
    def settled(self) -> bool:
        """True once every listed node has answered, or has failed to."""
        return bool(self._links) and all(link.settled.is_set() for link in self._links.values())

    def known(self) -> tuple[KnownNode, ...]:
        """Every listed node."""
        return tuple(link.known for link in self._links.values())

    def usable(self) -> Iterator[NodeSnapshot]:
        """The nodes that may get a new request."""
        for link in self._links.values():
            if link.usable and link.snapshot is not None:
                yield link.snapshot

    def holding(self, expert: str) -> Iterator[tuple[KnownNode, ExpertOnNode]]:
        """The nodes that have an expert, usable or not."""
        for node in self.known():
            if node.snapshot is not None and (found := node.snapshot.experts.get(expert)) is not None:
                yield node, found

    def best(self, expert: str) -> BestNode:
        """The expert at the node that would get the next request; the same object until something changes."""
        kept = self._kept.get(expert)
        if kept is not None and not any(map(self.sent.is_open, kept.engines)):
            return kept.best
        best = self._best_now(expert)
        there = (link.snapshot.experts.get(expert) for link in self._links.values() if link.snapshot is not None)
        engines = tuple({engine_of(one) for one in there if one is not None})
        if not any(map(self.sent.is_open, engines)):  # open requests come and go without a word of the nodes
            self._kept[expert] = _Kept(best, engines)
        return best

    def _best_now(self, expert: str) -> BestNode:
        known = self._experts[expert]
        if self._over is None:
            self._over = OverNodes(self.usable(), self.sent)
        found = self._over.get(expert)
        if found is not None:
            tier, wait_seconds, failure, returns_seconds, longest_tokens = found
            return BestNode(known, tier, wait_seconds, failure, returns_seconds, longest_tokens)
        told = (f"{node.name}: {'drained' if node.drained else node.unusable}" for node, _ in self.holding(expert))
        why = "; ".join(told) or "none is there"
        return BestNode(known, known.tier, 0.0, f"no node that has it takes requests ({why})", 1.0)

    def first(self, expert: str) -> str | None:
        """The node that would get the next request; None if none would."""
        return next(iter(choose(expert, self.usable(), self.sent)), None)

    def owed(self, node: str) -> int:
        """The answers that it owes this front."""
        return sum(self.sent.unanswered(node).values())

    # which one gets it

    def ranked(self, expert: str, tries: Tries) -> Iterator[NodeLink]:
        """The nodes to try, best first, without those that failed this request; looked at anew after each."""
        while True:
            left = [one for one in self.usable() if one.node not in tries.failed]
            kept = self._conversations.get(tries.session) if tries.session is not None else None
            names = choose(expert, left, self.sent, kept, answers=tries.answers)
            if not names:
                return
            yield self._links[names[0]]
            assert names[0] in tries.failed, "a node that was tried in vain is not tried again"

    def answered(self, node: str, tries: Tries) -> None:
        """Remember the node of a conversation."""
        if tries.session is None:
            return
        self._conversations[tries.session] = node
        self._conversations.move_to_end(tries.session)
        if len(self._conversations) > _MOST_CONVERSATIONS:
            self._conversations.popitem(last=False)

    def may_go_on(self, expert: str, tries: Tries) -> bool:
        """True if another node may answer, after the one that had begun failed before its first word.

        Never where the request may have been paid for.
        """
        if tries.node is None or tries.is_spent:
            return False
        link = self._links.get(tries.node)
        found = link.snapshot.experts.get(expert) if link is not None and link.snapshot is not None else None
        if tries.node not in tries.failed:
            self.outcomes[tries.node, "died"] += 1
            tries.failed.add(tries.node)
        tries.node, tries.is_spent = None, found is None or found.may_have_been_paid
        return not tries.is_spent

    # what an operator asks for

    async def drain(self, node: str) -> None:
        """Send a node nothing new from now on, until `resume`; also after a restart of this front."""
        await self._set_drained(node, True)

    async def resume(self, node: str) -> None:
        await self._set_drained(node, False)

    async def _set_drained(self, node: str, drained: bool) -> None:
        self._link(node).drained = drained
        (self._drained.add if drained else self._drained.discard)(node)
        logger.info("node '%s' is %s", node, "drained: it gets nothing new" if drained else "used again")
        self._forget()
        self.changed()
        await self._drained.keep()

    async def move(self, expert: str, action: str, node: str | None) -> str:
        """Ask a node to `load`, `unload`, `restart` or `pin?tier=...` an expert; without a name the best one. Returns
        its name."""
        link = self._link_with(expert, node)
        await ask(link, f"/node/experts/{expert}/{action}", _MOVE_SECONDS)
        return link.name

    async def log(self, expert: str, lines: int, node: str | None) -> dict[str, Any]:
        """The end of an expert's log as its node tells it. Raises EngineError if that is no JSON object."""
        link = self._link_with(expert, node)
        told = await ask(link, f"/node/experts/{expert}/log?lines={lines}", _LOG_SECONDS, "GET")
        try:
            found = json_value(told)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise EngineError(f"node '{link.name}' gave no log")
        return found

    def _link_with(self, expert: str, node: str | None) -> NodeLink:
        """The node of that name, or the best one that has the expert. Raises UnknownModel or RequestError."""
        if node is None:
            node = self.first(expert) or next((one.name for one, _ in self.holding(expert)), None)
            if node is None:
                raise UnknownModel(f"no node has expert '{expert}' now", "model")
        link = self._link(node)
        if link.snapshot is None or expert not in link.snapshot.experts:
            raise RequestError(f"node '{node}' does not have expert '{expert}'", "node")
        return link

    def _link(self, node: str) -> NodeLink:
        if node not in self._links:
            raise RequestError(f"there is no node '{node}'; known: {', '.join(self._links) or 'none'}", "node")
        return self._links[node]
