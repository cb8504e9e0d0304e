"""What this front has sent to each node: outcomes, the requests that are not answered yet, experts asked lately.

Snapshots lag; these counts do not. An expert that shares an engine counts under the name of its base.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_MOST_CONVERSATIONS = 10_000  # whose node is remembered


class Sent:
    """Counts answers by node and expert. It has no clock: age is a number of later requests."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()  # of requests, by node and outcome
        self._open: dict[str, dict[str, int]] = {}
        self._anywhere: Counter[str] = Counter()  # of `_open`, over all nodes
        self._last: dict[str, dict[str, int]] = {}
        self._number = 0
        self._conversations: OrderedDict[bytes, str] = OrderedDict()

    @contextmanager
    def sending(self, node: str, expert: str, answers: int = 1) -> Iterator[None]:
        """Count a request from now until it is answered or refused."""
        self._number += 1
        self._last.setdefault(node, {})[expert] = self._number
        open_there = self._open.setdefault(node, {})
        open_there[expert] = open_there.get(expert, 0) + answers
        self._anywhere[expert] += answers
        try:
            yield
        finally:
            for counts in (open_there, self._anywhere):
                counts[expert] -= answers
                if not counts[expert]:
                    del counts[expert]

    def unanswered(self, node: str) -> Mapping[str, int]:
        """Expert -> answers that this node owes, kept current; experts without any are left out."""
        return self._open.setdefault(node, {})

    def owed(self, node: str) -> int:
        """The answers that it owes this front."""
        return sum(self.unanswered(node).values())

    def is_open(self, expert: str) -> bool:
        """True if some node owes an answer of this expert."""
        return expert in self._anywhere

    def age(self, node: str, expert: str) -> int:
        """How many requests went out, to any node, since this expert was last asked for there; all if it never was."""
        return self._number - self._last.get(node, {}).get(expert, 0)

    def forget(self, node: str) -> None:
        """Drop what was sent to a node that is gone; requests that are still open end by themselves."""
        self._last.pop(node, None)

    def node_of(self, session: bytes | None) -> str | None:
        """The node that answered a conversation last."""
        return None if session is None else self._conversations.get(session)

    def answered(self, node: str, session: bytes | None) -> None:
        """Remember the node of a conversation."""
        if session is None:
            return
        self._conversations[session] = node
        self._conversations.move_to_end(session)
        if len(self._conversations) > _MOST_CONVERSATIONS:
            self._conversations.popitem(last=False)
