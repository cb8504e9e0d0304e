"""Step two's price, and what holds the mean cost of answered requests at an objective's target.

An expert's value is its expected score less what it costs. The multiplier that prices cost starts as training
found it and moves with what was really spent. Knows nothing of text, experts or HTTP.

The price of cost under each objective of an artifact: as stored, or held at its budget by what was answered.

Knows nothing of how an expert is chosen.

A little more or less of the multiplier for each prompt, always the same for the same text.

Prompts that look alike are worth alike: outside the gate all have the same expected scores. With one multiplier they
would all change hands at once, and most budgets could be missed or left unspent but never met. Spread over a tenth,
they change hands one after the other, and those whose choice is clear do not notice.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import numpy.typing as npt

from coe_server.routing.artifact import Artifact
from coe_server.routing.decision import BudgetReading, RoutingDecision
from coe_server.routing.features import Turn

Vector = npt.NDArray[np.float64]

# A lasting error is worked off in about an eightieth of the window. Where requests are alike, a range of multipliers
# spends the same and the multiplier wanders through it: the mean is off by what that takes, less the harder the push.
CORRECTIONS_PER_WINDOW = 80
ROUNDING = 1e-9  # of the largest cost: what costs so little more costs the same
LEAST_STEPS = 10.0  # in which an error is worked off, however short the window
HEADROOM = (
    1.5  # above the last multiplier that changes a choice by the score table, which corrections go beyond a little
)


def values(expected_scores: Vector, costs: Vector, multiplier: float) -> Vector:
    """Expected score - multiplier * cost, for each expert (last axis)."""
    return np.asarray(expected_scores - multiplier * costs)


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

    Dual ascent: the multiplier is the integral of what was spent too much, so no error lasts, and never leaves
    [0, largest]. It moves now and not with the answer: what many requests in flight cost is known already.
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
    """The one owner of an objective's balance; may be read and told from any thread."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self._balance = Balance(goal.start)
        self._lock = Lock()

    @property
    def balance(self) -> Balance:
        return self._balance

    @contextmanager
    def spending(self, cost: float) -> Iterator[Callable[[], None]]:
        """Around a request of this cost, from decision to end; to be called once it is answered."""
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


class Meters:
    """One meter for each objective with a budget; none where `window` is 0."""

    def __init__(self, artifact: Artifact, window: int) -> None:
        manifest = artifact.manifest
        self._stored = {
            name: BudgetReading(entry.budget, None, entry.multiplier) for name, entry in manifest.objectives.items()
        }
        self._costs = {
            name: dict(zip(artifact.expert_names, manifest.costs(name), strict=True)) for name in manifest.objectives
        }
        self._meters = _built(artifact, window) if window > 0 else {}

    def price(self, objective: str) -> BudgetReading:
        """What the next decision under this objective works with."""
        stored = self._stored[objective]
        meter = self._meters.get(objective)
        if meter is None:
            return stored
        balance = meter.balance
        return BudgetReading(stored.target, balance.mean, balance.multiplier)

    @contextmanager
    def spending(self, decision: RoutingDecision) -> Iterator[Callable[[], None]]:
        """Only what the router chose counts, not an expert that was asked for by name."""
        meter = self._meters.get(decision.objective)
        if meter is None or decision.reason == "requested":
            yield lambda: None
        else:
            with meter.spending(self._costs[decision.objective][decision.expert]) as answered:
                yield answered


def _built(artifact: Artifact, window: int) -> dict[str, Meter]:
    manifest = artifact.manifest
    rows = [*(manifest.score[category] for category in manifest.categories), manifest.overall]
    scores = np.array([[row[expert.name].score for expert in manifest.experts] for row in rows])
    front = [Point(point.score, point.mean_active_params_b) for point in manifest.front]
    return {
        name: Meter(
            goal(
                target=entry.budget,
                start=entry.multiplier,
                window=window,
                table=Table(
                    scores, np.array(manifest.costs(name)), front if entry.budget_unit == manifest.cost_unit else []
                ),
            )
        )
        for name, entry in manifest.objectives.items()
        if entry.budget is not None
    }


SPREAD = 0.1  # of the multiplier, on top of it: at its bound it still leaves the cheapest expert only


def factor(turns: Sequence[Turn]) -> float:
    """What to multiply the multiplier by, 1 to 1 + SPREAD, evenly spread over texts."""
    digest = 0
    for turn in turns:
        digest = zlib.crc32(turn.text.encode("utf-8", "replace"), digest)
    return 1.0 + SPREAD * digest / 2**32
