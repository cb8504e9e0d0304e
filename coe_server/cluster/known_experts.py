"""Which experts the nodes of a front have, and which have come and gone since its start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from coe_server.cluster.snapshot import MOST_EXPERTS, ExpertOnNode, NodeSnapshot


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
