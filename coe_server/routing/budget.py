"""The price of cost, and the controller that holds the mean cost of answered requests at an objective's budget.

An expert's value is its expected score less its priced cost. The multiplier, which prices cost, starts as training
found it and follows the actual spending. Of a text it knows a checksum only; it knows nothing of HTTP.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import numpy.typing as npt

from coe_server.routing.features import Turn
from coe_server.routing.manifest import Manifest

Vector = npt.NDArray[np.float64]

# A lasting error is corrected in about 1/80 of the window. Where requests are alike, a range of multipliers spends the
# same and the multiplier drifts through it; the mean is off for as long, so a larger gain makes its error smaller.
CORRECTIONS_PER_WINDOW = 80
ROUNDING = 1e-9  # of the largest cost: what costs so little more costs the same
LEAST_STEPS = 10.0  # in which an error is corrected, however short the window
HEADROOM = (
    1.5  # above the last multiplier that changes a choice by the score table, which corrections go beyond a little
)


def values(expected_scores: Iterable[float], costs: Iterable[float], multiplier: float) -> list[float]:
    """Expected score - multiplier * cost, for each expert."""
    return [score - multiplier * cost for score, cost in zip(expected_scores, costs, strict=True)]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a meter holds: the mean cost of the last `window` answered requests at `target`.

    `start` is the stored multiplier, `largest` the one beyond which nothing gets cheaper, `response` by how much
    the mean cost falls for each unit that the multiplier rises.
    """

    target: float
    start: float
    largest: float
    response: float
    window: int


@dataclass(frozen=True, slots=True)
class Balance:
    """`multiplier` is for the next decision; `spent` are the costs of the last answered requests, oldest first."""

    multiplier: float
    spent: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        return sum(self.spent) / len(self.spent) if self.spent else None


def begun(balance: Balance, goal: Goal, cost: float) -> Balance:
    """The balance once a decision of this cost is being followed.

    Dual ascent: the multiplier integrates the overspending, so no error lasts, and it stays within [0, largest].
    It moves now and not with the answer: the cost of requests in flight is known already.
    """
    return replace(balance, multiplier=_clipped(balance.multiplier + _step(goal, cost), goal))


def answered(balance: Balance, goal: Goal, cost: float) -> Balance:
    """The balance once such a request was answered."""
    return replace(balance, spent=(*balance.spent, cost)[-goal.window :])


def dropped(balance: Balance, goal: Goal, cost: float) -> Balance:
    """The balance once such a request ended without an answer: it cost nothing."""
    return replace(balance, multiplier=_clipped(balance.multiplier - _step(goal, cost), goal))


def _step(goal: Goal, cost: float) -> float:
    return (cost - goal.target) / (goal.response * max(goal.window / CORRECTIONS_PER_WINDOW, LEAST_STEPS))


def _clipped(multiplier: float, goal: Goal) -> float:
    return min(max(multiplier, 0.0), goal.largest)


class Meter:
    """Owns the balance of one objective; safe to read and to change from any thread."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self._balance = Balance(goal.start)
        self._lock = Lock()

    @property
    def balance(self) -> Balance:
        return self._balance

    @contextmanager
    def spending(self, cost: float) -> Iterator[Callable[[], None]]:
        """Holds a request of this cost, from decision to end; call the yielded function once it is answered."""
        is_answered = False

        def tell() -> None:
            nonlocal is_answered
            is_answered = True
            self._change(answered, cost)

        self._change(begun, cost)
        try:
            yield tell
        finally:
            if not is_answered:
                self._change(dropped, cost)

    def _change(self, step: Callable[[Balance, Goal, float], Balance], cost: float) -> None:
        with self._lock:
            self._balance = step(self._balance, self.goal, cost)


@dataclass(frozen=True, slots=True)
class Point:
    """A corner of the front of score against mean cost."""

    score: float
    cost: float


@dataclass(frozen=True, slots=True)
class Table:
    """What training found: `scores` [categories, experts], `costs` [experts], and the front, cheapest first."""

    scores: Vector
    costs: Vector
    front: Sequence[Point]


def goal(target: float, start: float, window: int, table: Table) -> Goal:
    """What to hold, and how strongly to push.

    `largest`: expected scores are mixtures of rows, so no prompt pays more for a unit of cost than some row does.
    `response`: along the front the mean cost falls from end to end while the multiplier rises from 0 to twice the
    front's mean slope; where there is no front, from the dearest expert to the cheapest while it rises to `largest`.
    """
    largest = max(HEADROOM * _dearest_unit(table.scores, table.costs), start)
    spread, whole_way = float(np.ptp(table.costs)), largest
    front = table.front
    if len(front) > 1 and front[-1].cost > front[0].cost and front[-1].score > front[0].score:
        spread = front[-1].cost - front[0].cost
        whole_way = min(2.0 * (front[-1].score - front[0].score) / spread, largest)
    if whole_way <= 0.0 or spread <= 0.0:
        return Goal(target, start, largest, response=1.0, window=window)  # nothing to trade: it stays where it is
    return Goal(target, start, largest, spread / whole_way, window)


def _dearest_unit(scores: Vector, costs: Vector) -> float:
    """The most score that one unit of cost buys between any two experts, in any row."""
    gained = scores[:, :, np.newaxis] - scores[:, np.newaxis, :]
    paid = costs[:, np.newaxis] - costs
    dearer = paid > ROUNDING * costs.max()
    return max(float((gained[:, dearer] / paid[dearer]).max(initial=0.0)), 0.0)


def meters(manifest: Manifest, window: int) -> dict[str, Meter]:
    """A meter for each objective with a budget, by name; none where `window` is 0."""
    if window == 0:
        return {}
    rows = [*(manifest.score[category] for category in manifest.categories), manifest.overall]
    scores = np.array([[row[expert.name].score for expert in manifest.experts] for row in rows])
    front = [Point(point.score, point.mean_active_params_b) for point in manifest.front]
    found = {}
    for name, entry in manifest.objectives.items():
        if entry.budget is not None:
            comparable = front if entry.budget_unit == manifest.cost_unit else []
            table = Table(scores, np.array(manifest.costs(name)), comparable)
            found[name] = Meter(goal(entry.budget, entry.multiplier, window, table))
    return found


SPREAD = 0.1  # share of the multiplier added at most; at its upper bound the cheapest expert alone is left


def factor(turns: Sequence[Turn]) -> float:
    """The factor on a prompt's multiplier, from 1 to 1 + SPREAD, evenly spread over texts and constant for each.

    Outside the gate all prompts have the same expected scores. One multiplier for all would move them together, and
    most budgets could be missed or left unspent but never met. With the spread they move one after the other.
    """
    digest = 0
    for turn in turns:
        digest = zlib.crc32(turn.text.encode("utf-8", "replace"), digest)
    return 1.0 + SPREAD * digest / 2**32
