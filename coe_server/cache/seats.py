"""Pure: the cards on which an expert may run. Knows sizes and links of cards, not what is loaded on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from coe_server.engines.engine import Seat


@dataclass(frozen=True, slots=True)
class Card:
    """One card that engines may use. `links`: indices of the cards connected by NVLink."""

    index: int
    total_bytes: int
    model: str = ""
    links: frozenset[int] = frozenset()
    instance: bool = False  # a MIG instance: never part of a block


def candidate_seats(cards: Sequence[Card], width: int, allowed: Collection[int] | None = None) -> tuple[Seat, ...]:
    """All seats of this width, in order of preference; empty if the machine has none.

    Width 1: each card. Wider: aligned blocks of cards of equal model and size, so that two seats of one width share
    either all cards or none. Cards connected by NVLink are adjacent, and blocks within one such island come first.
    `allowed` restricts the cards; if it names exactly `width` of them, they are the only seat.
    """
    usable = [card for card in cards if allowed is None or card.index in allowed]
    if width == 1:
        return tuple((card.index,) for card in usable)
    whole = [card for card in usable if not card.instance]
    joined: list[Seat] = []
    others: list[Seat] = []
    for alike in _alike(whole):
        islands = _islands(alike)
        for block in _blocks([card.index for island in islands for card in island], width):
            home = any(set(block) <= {card.index for card in island} for island in islands if len(island) > 1)
            (joined if home else others).append(block)
    return (*joined, *others)


def _alike(cards: Iterable[Card]) -> list[list[Card]]:
    """Groups of cards of equal model and size: ranks hold equal shares, so the smallest card would limit the others."""
    groups: dict[tuple[str, int], list[Card]] = {}
    for card in cards:
        groups.setdefault((card.model, card.total_bytes), []).append(card)
    return list(groups.values())


def _islands(cards: Sequence[Card]) -> list[list[Card]]:
    """Connected components of the links; largest first, then by first card."""
    left = {card.index: card for card in cards}
    islands = []
    while left:
        island, reached = [], [next(iter(left.values()))]
        while reached:
            card = reached.pop()
            if left.pop(card.index, None) is not None:
                island.append(card)
                reached.extend(left[index] for index in card.links if index in left)
        islands.append(sorted(island, key=lambda card: card.index))
    return sorted(islands, key=lambda island: (-len(island), island[0].index))


def _blocks(indices: Sequence[int], width: int) -> list[Seat]:
    last = len(indices) - width
    return [tuple(sorted(indices[first : first + width])) for first in range(0, last + 1, width)]
