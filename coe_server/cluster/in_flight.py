"""The requests that this front has sent to each node and that are not answered yet, by the expert that runs them.

Snapshots lag; these counts do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class InFlight:
    """Counts answers by node and expert. An expert that shares an engine counts under its base."""

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, int]] = {}
        self._totals: dict[str, int] = {}

    @contextmanager
    def sending(self, node: str, expert: str, answers: int = 1) -> Iterator[None]:
        """Count a request from now until it is answered or refused."""
        counts = self._by_node.setdefault(node, {})
        counts[expert] = counts.get(expert, 0) + answers
        self._totals[node] = self._totals.get(node, 0) + answers
        try:
            yield
        finally:
            counts[expert] -= answers
            if not counts[expert]:
                del counts[expert]
            self._totals[node] -= answers

    def at(self, node: str) -> Mapping[str, int]:
        """Expert -> answers that this node owes; experts with none are left out."""
        return self._by_node.get(node, {})

    def total(self, node: str) -> int:
        return self._totals.get(node, 0)
