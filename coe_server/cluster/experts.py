"""The experts of all nodes: which there are, and what the router is told of each until a node tells otherwise."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from coe_server.cluster.choice import OverNodes, engine_of
from coe_server.cluster.directory import usable
from coe_server.cluster.link import NodeLink
from coe_server.cluster.sent import Sent
from coe_server.cluster.snapshot import MOST_EXPERTS, ExpertOnNode, NodeSnapshot, TierOnNode


class KnownExperts:
    """`learn` is called for each expert that comes, by name, and `unlearn` for one that goes: a node that had it has it
    no more, and no other one has it."""

    def __init__(self) -> None:
        self.learn: Callable[[str], None] = lambda _: None
        self.unlearn: Callable[[str], None] = lambda _: None
        self._experts: dict[str, ExpertOnNode] = {}  # every name that was ever told, as it was told last
        self._gone: set[str] = set()  # of these, the ones that were unlearned
        self._told: dict[str, NodeSnapshot] = {}  # what each node told last

    def __iter__(self) -> Iterator[str]:
        """Every one that a node has told of, but for those that went."""
        return (name for name in self._experts if name not in self._gone)

    def __contains__(self, name: str) -> bool:
        return name in self._experts and name not in self._gone

    def last(self, name: str) -> ExpertOnNode:
        """The expert as some node told of it last; also one that went."""
        return self._experts[name]

    def hear(self, snapshots: Iterable[NodeSnapshot]) -> None:
        """Take over what the nodes tell now."""
        lost: set[str] = set()
        for told in snapshots:
            before = self._told.get(told.node)
            if told is before or not told.understood:
                continue
            self._told[told.node] = told
            lost.update(before.experts.keys() - told.experts.keys() if before is not None else ())
            for name, expert in told.experts.items():
                self._hear_of(name, expert)
        for name in sorted(lost):
            if name not in self._gone and not any(name in one.experts for one in self._told.values()):
                self._gone.add(name)
                self.unlearn(name)

    def _hear_of(self, name: str, expert: ExpertOnNode) -> None:
        is_new = name not in self._experts
        if is_new and len(self._experts) >= MOST_EXPERTS:
            return
        self._experts[name] = expert
        if is_new or name in self._gone:
            self._gone.discard(name)
            self.learn(name)

    def without(self, node: str) -> None:
        """A node is no longer listed. It may come back: its experts stay known."""
        self._told.pop(node, None)


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


class BestNodes:
    """By expert. `links` and `experts` are of the nodes, and current; `forget` is called after each change of them."""

    def __init__(self, links: Mapping[str, NodeLink], experts: KnownExperts, sent: Sent) -> None:
        self._links = links
        self._experts = experts
        self._sent = sent
        self._over: OverNodes | None = None  # until the next change
        self._kept: dict[str, _Kept] = {}  # of experts that have not changed, and have no open request

    def __getitem__(self, expert: str) -> BestNode:
        """The expert at the node that would get the next request; the same object until something changes."""
        kept = self._kept.get(expert)
        if kept is not None and not any(map(self._sent.is_open, kept.engines)):
            return kept.best
        best = self._now(expert)
        there = (link.liveness.expert(expert) for link in self._links.values())
        engines = tuple({engine_of(one) for one in there if one is not None})
        if not any(map(self._sent.is_open, engines)):  # open requests come and go without a word of the nodes
            self._kept[expert] = _Kept(best, engines)
        return best

    def forget(self, changed: Collection[str] | None = None) -> None:
        """Compute anew what is told of these experts, or of all."""
        self._over = None
        if changed is None:
            self._kept.clear()
        else:
            for name in changed:
                self._kept.pop(name, None)

    def _now(self, expert: str) -> BestNode:
        known = self._experts.last(expert)
        if self._over is None:
            self._over = OverNodes(usable(link.known for link in self._links.values()), self._sent)
        found = self._over.get(expert)
        if found is not None:
            tier, wait_seconds, failure, returns_seconds, longest_tokens = found
            return BestNode(known, tier, wait_seconds, failure, returns_seconds, longest_tokens)
        there = (link.known for link in self._links.values() if link.liveness.expert(expert) is not None)
        told = "; ".join(f"{node.name}: {'drained' if node.drained else node.unusable}" for node in there)
        why = f"no node that has it takes requests ({told or 'none is there'})"
        return BestNode(known, known.tier, 0.0, why, returns_seconds=1.0)
