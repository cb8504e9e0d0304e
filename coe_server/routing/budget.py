"""The controller that keeps the mean cost of answered requests at an objective's budget.

An expert's value is its expected score minus multiplier times cost. The multiplier starts at training's value and
follows the actual spending.
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

# A constant error is corrected in about 1/80 of the window. If requests are alike, a range of multipliers spends the
# same. The mean is off while the multiplier drifts through that range, so a larger gain makes the error smaller.
CORRECTIONS_PER_WINDOW = 80
ROUNDING = 1e-9  # relative to the largest cost: smaller differences are ties
LEAST_STEPS = 10.0  # lower bound on the steps of a correction, for short windows
HEADROOM = 1.5  # margin above the last multiplier that changes a choice by the score table, because of corrections


def values(expected_scores: Iterable[float], costs: Iterable[float], multiplier: float) -> list[float]:
    """Expected score - multiplier * cost, for each expert."""
    return [score - multiplier * cost for score, cost in zip(expected_scores, costs, strict=True)]


@dataclass(frozen=True, slots=True)
class Goal:
    """The control target of a meter: mean cost `target` over the last `window` answered requests.

    `start`: the stored multiplier. `largest`: beyond it no choice gets cheaper. `response`: decrease of the mean cost
    per unit of the multiplier.
    """

    target: float
    start: float
    largest: float
    response: float
    window: int


@dataclass(frozen=True, slots=True)
class Balance:
    """State of the controller. `multiplier`: for the next decision; `spent`: costs of the last answered requests."""

    multiplier: float
    spent: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        return sum(self.spent) / len(self.spent) if self.spent else None


def begun(balance: Balance, goal: Goal, cost: float) -> Balance:
    """The balance after a decision of this cost has begun.

    Dual ascent: the multiplier integrates the overspending, within [0, largest], so there is no steady-state error.
    It changes now, not with the answer, since the cost of requests in flight is known.
    """
    return replace(balance, multiplier=_clipped(balance.multiplier + _step(goal, cost), goal))


def answered(balance: Balance, goal: Goal, cost: float) -> Balance:
    """The balance after such a request was answered."""
    return replace(balance, spent=(*balance.spent, cost)[-goal.window :])


def dropped(balance: Balance, goal: Goal, cost: float) -> Balance:
    """The balance after such a request ended without an answer, at no cost."""
    return replace(balance, multiplier=_clipped(balance.multiplier - _step(goal, cost), goal))


def _step(goal: Goal, cost: float) -> float:
    return (cost - goal.target) / (goal.response * max(goal.window / CORRECTIONS_PER_WINDOW, LEAST_STEPS))


def _clipped(multiplier: float, goal: Goal) -> float:
    return min(max(multiplier, 0.0), goal.largest)


class Meter:
    """The balance of one objective; thread-safe."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self._balance = Balance(goal.start)
        self._lock = Lock()

    @property
    def balance(self) -> Balance:
        return self._balance

    @contextmanager
    def spending(self, cost: float) -> Iterator[Callable[[], None]]:
        """A context from the decision to the end of a request of this cost; call the yielded function when answered."""
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
    """A corner of the front of score over mean cost."""

    score: float
    cost: float


@dataclass(frozen=True, slots=True)
class Table:
    """Results of training: `scores` [categories, experts], `costs` [experts], and the front, cheapest first."""

    scores: Vector
    costs: Vector
    front: Sequence[Point]


def goal(target: float, start: float, window: int, table: Table) -> Goal:
    """The control target, with `largest` and `response` derived from the table.

    `largest`: expected scores are mixtures of rows, so no prompt gains more per unit of cost than some row does.
    `response`: while the multiplier rises from 0 to twice the front's mean slope, the mean cost falls over the whole
    front. Without a front: from the most expensive expert to the cheapest while it rises to `largest`.
    """
    largest = max(HEADROOM * _dearest_unit(table.scores, table.costs), start)
    spread, whole_way = float(np.ptp(table.costs)), largest
    front = table.front
    if len(front) > 1 and front[-1].cost > front[0].cost and front[-1].score > front[0].score:
        spread = front[-1].cost - front[0].cost
        whole_way = min(2.0 * (front[-1].score - front[0].score) / spread, largest)
    if whole_way <= 0.0 or spread <= 0.0:
        return Goal(target, start, largest, response=1.0, window=window)  # nothing to trade: the multiplier is constant
    return Goal(target, start, largest, spread / whole_way, window)


def _dearest_unit(scores: Vector, costs: Vector) -> float:
    """The largest score difference per unit of cost between any two experts, over all rows."""
    gained = scores[:, :, np.newaxis] - scores[:, np.newaxis, :]
    paid = costs[:, np.newaxis] - costs
    dearer = paid > ROUNDING * costs.max()
    return max(float((gained[:, dearer] / paid[dearer]).max(initial=0.0)), 0.0)


def meters(manifest: Manifest, window: int) -> dict[str, Meter]:
    """A meter for each objective with a budget, by name; empty if `window` is 0."""
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


SPREAD = 0.1  # largest relative increase of the multiplier; at its upper bound only the cheapest expert remains


def factor(turns: Sequence[Turn]) -> float:
    """The factor on a prompt's multiplier, from 1 to 1 + SPREAD, uniform over texts and constant for each text.

    Outside the gate all prompts have the same expected scores. With one multiplier they would all change their expert
    at once, and most budgets could not be met exactly. With the factor they change one by one.
    """
    digest = 0
    for turn in turns:
        digest = zlib.crc32(turn.text.encode("utf-8", "replace"), digest)
    return 1.0 + SPREAD * digest / 2**32
