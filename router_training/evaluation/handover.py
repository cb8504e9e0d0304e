"""What handing over an unsure answer gains: the same router with it and without it, at equal mean cost. Pure.

Costs are an expert's (active parameters, or a price) times the tokens generated, those of abandoned answers included,
over the mean length of an answer; so an average answer of an expert costs what the expert costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.routing.certainty import FIRST_TOKENS, WHOLE, Handover
from router_training.assignment.milp import choices
from router_training.classifier.certainty import Models, fitted_models, probabilities
from router_training.data.dataset import Dataset
from router_training.data.split import Fold
from router_training.evaluation.metrics import Bootstrap, Hull, mean, upper_hull

Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

MARGINS = 40  # tried for each number of tokens
DIAL = 12  # multipliers of the router without handover, for its scores at other costs
NEVER = 1e6  # a margin
ROUNDING = 1e-9
DECIMALS = 12  # of a gain: what hands nothing over gains 0


@dataclass(frozen=True, slots=True)
class Stage:
    """n prompts with all outcomes as one objective decides them.

    `allowed` [n, experts]: expected scores, -inf where an expert may not answer. `first` [n]: the expert that is asked.
    `penalty` [n]: the multiplier of costs. `known` [n]: False where the router says nothing of the prompt, so that
    the overall means decide. `costs` [experts]. `lengths` [n, experts]: of answers, over the mean length; `unit`: the
    tokens of that mean.
    """

    dataset: Dataset
    allowed: Vector
    first: Ints
    penalty: Vector
    known: Flags
    costs: Vector
    lengths: Vector
    unit: float

    @classmethod
    def of(
        cls, dataset: Dataset, allowed: Vector, first: Ints, penalty: Vector, known: Flags, costs: Sequence[float]
    ) -> Stage:
        """With lengths as recorded; an expert's unknown ones are its mean, or the mean of all."""
        written = dataset.said.tokens if dataset.said is not None else np.full(dataset.scores.shape, np.nan)
        recorded = ~np.isnan(written)
        everywhere = float(written[recorded].mean()) if recorded.any() else 1.0
        means = [
            float(column[there].mean()) if there.any() else everywhere
            for column, there in zip(written.T, recorded.T, strict=True)
        ]
        filled = np.maximum(np.where(recorded, written, means), 1.0)
        unit = float(np.average(filled.mean(axis=1), weights=dataset.weights))
        return cls(dataset, allowed, first, penalty, known, np.array(costs), filled / unit, unit)

    def rows(self, kept: Ints) -> Stage:
        """The prompts with these row numbers."""
        return replace(
            self,
            dataset=self.dataset.rows(kept),
            allowed=self.allowed[kept],
            first=self.first[kept],
            penalty=self.penalty[kept],
            known=self.known[kept],
            lengths=self.lengths[kept],
        )

    @property
    def expected(self) -> Vector:
        """[n, experts]: as the curves take it, NaN where the router says nothing."""
        guesses = np.where(np.isfinite(self.allowed), self.allowed, 0.0)
        return np.where(self.known[:, np.newaxis], guesses, np.nan)

    @property
    def spent(self) -> Vector:
        """[n, experts]: the cost of each expert's whole answer."""
        return self.costs * self.lengths


@dataclass(frozen=True, slots=True)
class Played:
    """What happens to n prompts: the score, the cost, and whether the answer was handed over."""

    scores: Vector
    spent: Vector
    handed: Flags


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of n prompts, after some tokens of the first answer: the best other expert, and its advantage.

    `advantages` [n]: the value of `seconds` [n] less that of the first, whose score is P(right); -inf where it is not
    judged or there is no other.
    """

    seconds: Ints
    advantages: Vector


def judged(stage: Stage, models: Models, tokens: int) -> Judgement:
    """As serving judges: where the router says nothing of a prompt, others are expected to score as they do instead."""
    rows = np.arange(len(stage.first))
    right, after = np.full(len(rows), np.nan), stage.allowed.copy()
    for column, name in enumerate(stage.dataset.experts):
        model, mine = models.get(name), np.flatnonzero(stage.first == column)
        if model is None or stage.dataset.said is None or not len(mine):
            continue
        means = stage.dataset.said.of(tokens)[mine, column]
        right[mine] = probabilities(model.curve(tokens), means, stage.expected[mine, column])
        unknown = mine[~stage.known[mine]]
        for place, other in enumerate(stage.dataset.experts):
            if other in model.instead:
                known = model.instead[other]
                score = right[unknown] * known.where_right + (1.0 - right[unknown]) * known.where_wrong
                after[unknown, place] = np.where(np.isfinite(after[unknown, place]), score, -np.inf)
    values = after - stage.penalty[:, np.newaxis] * stage.costs
    values[rows, stage.first] = -np.inf
    seconds = np.nan_to_num(values, nan=-np.inf).argmax(axis=1)
    rest = 1.0 - _spent_share(stage, tokens)  # the answer that stays still costs this share
    advantages = values[rows, seconds] - (right - stage.penalty * stage.costs[stage.first] * rest)
    return Judgement(seconds, np.where(np.isnan(advantages), -np.inf, advantages))


def _spent_share(stage: Stage, tokens: int) -> float:
    """The share of an average answer that is generated before the judgement: its own length is not known then."""
    return 1.0 if tokens == WHOLE else min(1.0, tokens / stage.unit)


def played(stage: Stage, judgement: Judgement, margin: float, tokens: int) -> Played:
    """Those whose advantage is above the margin are handed over after this many tokens (WHOLE: all)."""
    handed = judgement.advantages > margin
    kept, moved = _kept(stage), _moved(stage, judgement.seconds, tokens)
    return Played(np.where(handed, moved.scores, kept.scores), np.where(handed, moved.spent, kept.spent), handed)


def _kept(stage: Stage) -> Played:
    rows = np.arange(len(stage.first))
    return Played(
        stage.dataset.scores[rows, stage.first], stage.spent[rows, stage.first], np.zeros(len(rows), dtype=np.bool_)
    )


def _moved(stage: Stage, seconds: Ints, tokens: int) -> Played:
    rows = np.arange(len(stage.first))
    written = stage.lengths[rows, stage.first]
    wasted = stage.costs[stage.first] * (np.minimum(written, tokens / stage.unit) if tokens else written)
    return Played(
        stage.dataset.scores[rows, seconds], wasted + stage.spent[rows, seconds], np.ones(len(rows), dtype=np.bool_)
    )


def without_handover(stage: Stage) -> Vector:
    """[n, 2k]: k score columns, then k cost columns: the router as it is, with other multipliers, single experts."""
    rows = np.arange(len(stage.first))
    factors = stage.penalty / (stage.penalty.mean() or 1.0) if stage.penalty.any() else np.ones(len(rows))
    steps = np.concatenate(([0.0], np.geomspace(1e-3, 2.0, DIAL))) / max(float(np.ptp(stage.costs)), 1e-12)
    dialled = [choices(stage.allowed / factors[:, np.newaxis], stage.costs, step) for step in steps]
    singles = [np.full(len(rows), column) for column in range(len(stage.costs))]
    chosen = np.stack([stage.first, *dialled, *singles], axis=1)
    scores = stage.dataset.scores[rows[:, np.newaxis], chosen]
    return np.hstack((scores, stage.spent[rows[:, np.newaxis], chosen]))


def above_the_router(means: Vector) -> float:
    """What a score gains over the router's own, less what its additional cost buys without handover.

    `means`: the score, its cost, and those of `without_handover`.
    """
    score, cost, rest = float(means[0]), float(means[1]), means[2:]
    return score - _Alternatives.of(rest).score_at(cost)


@dataclass(frozen=True, slots=True)
class _Alternatives:
    """The router's own mean score and cost, and the hull of what it reaches at other costs."""

    score: float
    cost: float
    hull: Hull

    @classmethod
    def of(cls, means: Vector) -> _Alternatives:
        """From the means of `without_handover`."""
        scores, costs = np.split(means, 2)
        return cls(float(scores[0]), float(costs[0]), upper_hull(costs, scores))

    def score_at(self, cost: float) -> float:
        """The router's own score, and what the hull rises from its own cost to this one.

        A budget may keep the router below the hull: handing nothing over must gain nothing.
        """
        return self.score + self.hull.score_at(cost) - self.hull.score_at(self.cost)


def best_handover(stage: Stage, models: Models, lengths: Sequence[int] = FIRST_TOKENS) -> Handover:
    """The number of tokens and the margin with the largest gain at equal cost on these prompts; NEVER without a gain.

    Margins are quantiles of the advantages, so that few prompts more or less make a step.
    """
    weights = stage.dataset.weights / stage.dataset.weights.sum()
    kept, router = _kept(stage), _Alternatives.of(weights @ without_handover(stage))
    best, found = ROUNDING, Handover(lengths[0], NEVER)
    for tokens in lengths:
        judgement = judged(stage, models, tokens)
        moved, advantage = _moved(stage, judgement.seconds, tokens), judgement.advantages
        order = np.argsort(-advantage, kind="stable")[: int(np.isfinite(advantage).sum())]
        scores = weights @ kept.scores + np.cumsum((weights * (moved.scores - kept.scores))[order])
        spent = weights @ kept.spent + np.cumsum((weights * (moved.spent - kept.spent))[order])
        places = _places(advantage[order])
        gains = scores[places] - np.array([router.score_at(cost) for cost in spent[places].tolist()])
        if len(gains) and gains.max() > best + ROUNDING:
            place = int(places[gains.argmax()])
            below = advantage[order[place + 1]] if place + 1 < len(order) else advantage[order[place]] - 1.0
            best, found = float(gains.max()), Handover(tokens, float(advantage[order[place]] + below) / 2.0)
    return found


def _places(advantages: Vector) -> Ints:
    """Places in advantages, largest first, after which a margin may lie: between different values."""
    last = len(advantages) - 1
    from_top = np.linspace(0.0, 1.0, MARGINS) ** 2  # closer together where few prompts are handed over
    places = np.unique((last * from_top).round().astype(np.int64)) if last >= 0 else np.empty(0, dtype=np.int64)
    follows = places + 1
    return places[(follows > last) | (advantages[np.minimum(follows, last)] < advantages[places])]


@dataclass(frozen=True, slots=True)
class HandoverGain:
    """The gain at equal mean cost with its interval; `share` handed over, the scores with and without, the cost."""

    gain: float
    low: float
    high: float
    share: float
    score: float
    score_without: float
    cost: float

    def as_json(self) -> dict[str, Any]:
        return {
            "gain": self.gain,
            "gain_ci95": [self.low, self.high],
            "share": self.share,
            "score": self.score,
            "score_without": self.score_without,
            "mean_active_params_b": self.cost,
        }


def gain_of(stage: Stage, one: Played, bootstrap: Bootstrap) -> HandoverGain:
    """With handover over the same router without it at the same mean cost; each resample has its own router's curve."""
    weights = stage.dataset.weights
    columns = np.column_stack((one.scores, one.spent, without_handover(stage)))
    gain = above_the_router(weights @ columns / weights.sum())
    low, high = bootstrap.interval(columns, weights, lambda means: round(above_the_router(means), DECIMALS))
    score = mean(one.scores, weights)
    return HandoverGain(
        round(gain, DECIMALS),
        low,
        high,
        mean(one.handed.astype(np.float64), weights),
        score,
        score - gain,
        mean(one.spent, weights),
    )


def cross_played(stage: Stage, folds: Sequence[Fold], fit_on: Stage | None = None) -> Played:
    """Each fold's prompts with models, number of tokens and margin found without them.

    With `fit_on` these are found on the same prompts in other circumstances.
    """
    count = len(stage.first)
    found = Played(np.zeros(count), np.zeros(count), np.zeros(count, dtype=np.bool_))
    grounds = fit_on or stage
    for fold in folds:
        seen, left_out = grounds.rows(fold.seen), stage.rows(fold.left_out)
        models = fitted_models(seen.dataset, seen.expected)
        one = by_rule(left_out, models, best_handover(seen, models))
        for whole, part in ((found.scores, one.scores), (found.spent, one.spent), (found.handed, one.handed)):
            whole[fold.left_out] = part
    return found


def by_rule(stage: Stage, models: Models, rule: Handover) -> Played:
    """What this rule does to the prompts."""
    return played(stage, judged(stage, models, rule.tokens), rule.margin, rule.tokens)
