"""Draws an expert for a conversation, so that ratings can tell what each expert would have answered. Pure.

The draw comes after exclusions, caps and budget; the usual choice keeps its residency. `learn` draws each expert with
the probability that it is the best, by the ratings so far (Thompson, "On the likelihood that one unknown probability
exceeds another", 1933), until the category is settled; a share draws that part of conversations among all experts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from coe_server.routing.decision import Exploration
from coe_server.routing.learning import Ratings, learned
from coe_server.routing.selection import Candidate, Choice

Vector = npt.NDArray[np.float64]
Mode = Literal["off", "learn"] | float

ALWAYS_SHARE = 0.05  # of a category that is not settled: drawn among all experts
SETTLED_SHARE = 0.02  # of a settled category


@dataclass(frozen=True, slots=True)
class Learned:
    """What ratings have taught: `shifts` [categories, experts] of the score table, `draws` [draws, categories, experts]
    of them, and the `settled` categories. `rows` and `columns`: the numbers of categories and experts."""

    rows: Mapping[str, int]
    columns: Mapping[str, int]
    shifts: Vector
    draws: Vector
    settled: frozenset[str] = frozenset()
    steps: int = 0

    def shift(self, category: str, expert: str) -> float:
        """The change of this expert's score in this category; 0 for what is not known here."""
        row, column = self.rows.get(category), self.columns.get(expert)
        return 0.0 if row is None or column is None else float(self.shifts[row, column])

    def over(self, scores: Sequence[float], category: str) -> Sequence[float]:
        """Expected scores of all experts, in the order of the columns, with what was learned of this category."""
        if not self.steps or not self.knows(category):
            return scores
        shifts = self.shifts[self.rows[category]].tolist()
        return [score + shift for score, shift in zip(scores, shifts, strict=True)]

    def only(self, experts: Mapping[str, Collection[str]]) -> Learned:
        """The same with no change of any score but those of these experts, by category."""
        shifts = np.zeros_like(self.shifts)
        for category, names in experts.items():
            row, columns = self.rows[category], [self.columns[name] for name in names]
            shifts[row, columns] = self.shifts[row, columns]
        return replace(self, shifts=shifts)

    def knows(self, category: str) -> bool:
        """True if any score of this category has changed."""
        row = self.rows.get(category)
        return row is not None and bool(self.shifts[row].any())


def nothing_learned(categories: Sequence[str], experts: Sequence[str]) -> Learned:
    """The state before the first rating: draws from the prior."""
    rows = {name: place for place, name in enumerate(dict.fromkeys(categories))}
    columns = {name: place for place, name in enumerate(experts)}
    nothing = np.zeros(0, dtype=np.int64)
    prior = learned(Ratings(nothing, nothing, np.zeros(0), np.zeros(0)), len(rows), len(columns))
    return Learned(rows, columns, np.zeros((len(rows), len(columns))), prior.draws)


def explored(
    first: Choice, usual: Choice, free: Sequence[Candidate], category: str, draw: float, mode: Mode, known: Learned
) -> Choice:
    """The choice after a draw, `draw` in [0, 1), with the distribution it came from.

    `first`: the choice before residency, `usual`: after it. `free`: the experts that may be chosen.
    """
    names = [one.name for one in free]
    if mode == "off" or len(names) < 2:
        return usual
    shares = _shares(first.expert.name, free, category, mode, known)
    chances = dict(zip(names, shares, strict=True))
    moved = chances[first.expert.name] if usual.expert is not first.expert else 0.0
    chances[first.expert.name] -= moved
    chances[usual.expert.name] += moved
    drawn = free[_drawn(list(chances.values()), draw)]
    base = None if drawn.expected_score is None else drawn.expected_score - known.shift(category, drawn.name)
    rounded = {name: round(chance, 6) for name, chance in chances.items()}
    told = Exploration(drawn.name, usual.expert.name, rounded, category, base)
    return replace(usual, exploration=told) if drawn is usual.expert else Choice(drawn, "explored", exploration=told)


def _shares(best: str, free: Sequence[Candidate], category: str, mode: Mode, known: Learned) -> list[float]:
    """The probability of each free expert before residency."""
    if mode == "learn" and category in known.rows and category not in known.settled:
        shares, at_random = _best_shares(free, category, known), ALWAYS_SHARE
    else:
        shares = [float(one.name == best) for one in free]
        at_random = SETTLED_SHARE if isinstance(mode, str) else mode
    return [(1.0 - at_random) * share + at_random / len(free) for share in shares]


def _best_shares(free: Sequence[Candidate], category: str, known: Learned) -> list[float]:
    """The share of draws in which each expert has the best value. Experts unknown to the table get none."""
    row = known.rows[category]
    places = [place for place, one in enumerate(free) if one.name in known.columns]
    if not places:
        return [float(not place) for place in range(len(free))]
    columns = [known.columns[free[place].name] for place in places]
    values = np.array([free[place].value or 0.0 for place in places]) - known.shifts[row, columns]
    best = (values + known.draws[:, row, columns]).argmax(axis=1)
    shares = np.zeros(len(free))
    shares[places] = np.bincount(best, minlength=len(places)) / len(best)
    return list(shares.tolist())


def _drawn(chances: Sequence[float], draw: float) -> int:
    reached = 0.0
    for place, chance in enumerate(chances):
        reached += chance
        if draw < reached:
            return place
    return max(range(len(chances)), key=chances.__getitem__)  # rounding
