"""Each expert's availability in the router's words: of experts here from the cache's outlooks, of others from nodes.

Nothing is kept here but what was told before: an unchanged expert is not described anew for each request.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import cast

from coe_server.cache.outlooks import Outlook
from coe_server.cache.slot import Slot
from coe_server.cluster.experts import BestNode
from coe_server.cluster.nodes import Nodes
from coe_server.config.types import MODALITIES
from coe_server.engines.engine import TellsLength
from coe_server.errors import first_line
from coe_server.routing.capabilities import Capabilities
from coe_server.routing.conversation import Endpoint
from coe_server.routing.decision import Availability, Residency


class Here(Mapping[str, Availability]):
    """The cache's outlooks in the router's words; of a failure only its first line, which callers may read.

    `bases`: the experts that share another's engine, each with that one, whose outlook is theirs. Those `leaving` are
    absent. `told`: kept from request to request, by expert with its engine.
    """

    def __init__(
        self,
        outlooks: Mapping[str, Outlook],
        lengths: Mapping[str, TellsLength],
        bases: Mapping[str, str],
        leaving: Collection[str],
        told: dict[str, tuple[Outlook, Availability]],
    ) -> None:
        self._outlooks = outlooks
        self._lengths = lengths
        self._bases = bases
        self._leaving = leaving
        self._told = told

    def __getitem__(self, name: str) -> Availability:
        if name in self._leaving:
            raise KeyError(name)
        own = self._bases.get(name, name)
        outlook, length = self._outlooks[own], told_length(self._lengths, own)
        before, there = self._told.get(own, (None, None))
        if before is not outlook or there is None or there.longest_tokens != length:
            self._told[own] = outlook, (there := _available(outlook, length))
        return there

    def __iter__(self) -> Iterator[str]:
        every = (*self._outlooks, *self._bases)
        return iter([name for name in every if name not in self._leaving] if self._leaving else every)

    def __len__(self) -> int:
        return len(tuple(iter(self)))


class WithNodes(Mapping[str, Availability]):
    """The availability of local experts, and of those on nodes as the best node has them.

    An expert of the router that no node has told of yet is served, but unavailable. `told`: kept from request to
    request, by expert; a router with 150 experts looks at all of them.
    """

    def __init__(
        self,
        here: Mapping[str, Availability],
        nodes: Nodes,
        slots: Mapping[str, Slot],
        trained: Sequence[str],
        told: dict[str, tuple[BestNode, Availability]],
    ) -> None:
        self._here = here
        self._nodes = nodes
        self._slots = slots
        self._told = told
        self._missing = [name for name in trained if name not in slots and name not in here]

    def __getitem__(self, name: str) -> Availability:
        slot = self._slots.get(name)
        if slot is not None and slot.expert.on_nodes and not slot.leaves:
            best = self._nodes.best[name]
            told = self._told.get(name)
            if told is None or told[0] is not best:
                self._told[name] = told = best, _at(best)
            return told[1]
        if name in self._missing:
            return Availability("disk", 0.0, "no node has it", 1.0)
        return self._here[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._here, *self._missing))

    def __len__(self) -> int:
        return len(self._here) + len(self._missing)


def _available(outlook: Outlook, length: int | None) -> Availability:
    residency, wait_seconds, failure, returns_seconds = outlook
    told = first_line(failure) if failure is not None else None
    return Availability(cast(Residency, residency), wait_seconds, told, returns_seconds, length)


def _at(best: BestNode) -> Availability:
    said = best.example.capabilities
    able = Capabilities(
        said.context_tokens,
        {known: said.modalities[known] for known in MODALITIES if known in said.modalities},
        said.tools,
        None if said.endpoints is None else cast("frozenset[Endpoint]", frozenset(said.endpoints)),
    )
    absence = best.unavailable, best.returns_seconds
    return Availability(best.tier, best.wait_seconds, *absence, best.longest_tokens, able)


def told_length(lengths: Mapping[str, TellsLength], expert: str) -> int | None:
    engine = lengths.get(expert)
    return None if engine is None else engine.longest_tokens
