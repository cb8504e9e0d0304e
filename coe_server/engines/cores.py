"""Cores of this machine: the share of each card of a divided machine, and those near a GPU. Pure except `here`.

A core is what Linux counts as one: a hardware thread.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

Cores = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Core:
    """`node` is its NUMA node; `physical` is the same for all threads of one physical core."""

    index: int
    node: int
    physical: int


def here(root: Path = Path("/sys/devices/system"), allowed: Collection[int] | None = None) -> tuple[Core, ...]:
    """The cores that this process may run on. Without data of the system: one node, one thread for each core."""
    indices = sorted(os.sched_getaffinity(0) if allowed is None else allowed)
    nodes = {
        index: int(folder.name.removeprefix("node"))
        for folder in root.glob("node/node[0-9]*")
        for index in parse_list(_text(folder / "cpulist"))
    }
    return tuple(Core(index, nodes.get(index, 0), _physical(root, index)) for index in indices)


def parse_list(text: str) -> Cores:
    """`0-3,8` as Linux writes lists of cores; empty for an empty text."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def divided(cores: Iterable[Core], cards: int) -> tuple[Cores, ...]:
    """Equal shares for that many cards: neighbours of one node where that is possible, and whole physical cores.

    Fewer cores than cards are shared.
    """
    in_order = sorted(cores, key=lambda core: (core.node, core.physical, core.index))
    groups: dict[tuple[int, int], list[int]] = {}
    for core in in_order:
        groups.setdefault((core.node, core.physical), []).append(core.index)
    units = list(groups.values()) if len(groups) >= cards else [[core.index] for core in in_order]
    if len(units) < cards:
        return tuple(tuple(units[card % len(units)]) for card in range(cards))
    edges = [round(card * len(units) / cards) for card in range(cards + 1)]
    return tuple(
        tuple(sorted(index for unit in units[first:last] for index in unit)) for first, last in pairwise(edges)
    )


def near(cores: Sequence[Core], nodes: Iterable[int | None]) -> Cores:
    """The cores on `nodes`, the NUMA nodes of an engine's cards; empty where binding to them would change nothing.

    That is so on a machine with one node, for a card that does not report its node, and if this process may use all
    cores of those nodes and no others.
    """
    if len({core.node for core in cores}) < 2:
        return ()  # before the cards are asked
    if None in (wanted := set(nodes)):
        return ()
    found = tuple(core.index for core in cores if core.node in wanted)
    return found if len(found) < len(cores) else ()


def _physical(root: Path, index: int) -> int:
    siblings = parse_list(_text(root / f"cpu/cpu{index}/topology/thread_siblings_list"))
    return siblings[0] if siblings else index


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
