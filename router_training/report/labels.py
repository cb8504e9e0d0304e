"""Where names stand beside their points so that none covers another. Pure; lengths in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

SPACING = 6.0
CHARACTER, LINE, GAP = 5.9, 13.0, 8.0  # of the charts' font; a little generous


@dataclass(frozen=True, slots=True)
class Label:
    """A name and the point that it belongs to."""

    x: float
    y: float
    text: str

    @property
    def width(self) -> float:
        return CHARACTER * len(self.text)


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    right: float
    bottom: float
    top: float

    def overlap(self, other: _Box) -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(wide, 0.0) * max(high, 0.0)


def placed(
    labels: Sequence[Label], sides: tuple[float, float], kept_free: Sequence[tuple[float, float]] = ()
) -> list[tuple[float, float]]:
    """Offset of each name's left middle from its point: the first free place around it, else the least crowded.

    `sides` are left and right end of the chart, `kept_free` further spots that names should not cover.
    """
    taken = [_Box(one.x - 5, one.x + 5, one.y - 5, one.y + 5) for one in labels]
    taken += [_Box(x - 2, x + 2, y - 2, y + 2) for x, y in kept_free]
    offsets = []
    for label in labels:
        places = [_box(label, dx, dy) for dx, dy in _around(label)]
        crowding = [_crowding(box, taken, sides) for box in places]
        best = crowding.index(min(crowding))
        taken.append(places[best])
        offsets.append(_around(label)[best])
    return offsets


def along(corners: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Spots on the line through these corners, one every few pixels."""
    spots = []
    for (x, y), (to_x, to_y) in pairwise(corners):
        steps = max(int(max(abs(to_x - x), abs(to_y - y)) / SPACING), 1)
        spots += [(x + (to_x - x) * step / steps, y + (to_y - y) * step / steps) for step in range(steps + 1)]
    return spots


def _around(label: Label) -> list[tuple[float, float]]:
    beside, before, centred = GAP, -GAP - label.width, -label.width / 2
    rows = [(0.0, (beside, before)), (LINE, (centred, beside, before)), (-LINE, (centred, beside, before))]
    rows += [(1.6 * LINE, (beside, before)), (-1.6 * LINE, (beside, before))]
    rows += [(2 * LINE, (centred, beside, before)), (-2 * LINE, (centred, beside, before))]
    return [(dx, dy) for dy, columns in rows for dx in columns]


def _box(label: Label, dx: float, dy: float) -> _Box:
    left, middle = label.x + dx, label.y + dy
    return _Box(left, left + label.width, middle - LINE / 2, middle + LINE / 2)


def _crowding(box: _Box, taken: Sequence[_Box], sides: tuple[float, float]) -> float:
    outside = max(sides[0] - box.left, 0.0) + max(box.right - sides[1], 0.0)
    return sum(box.overlap(other) for other in taken) + LINE * outside
