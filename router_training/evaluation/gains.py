"""Gains over not routing, the cost curve, the worst prompts, and the verdict on each objective. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.routing.manifest import Manifest, ObjectiveEntry
from router_training.assignment.milp import SLACK, choices, least_step
from router_training.assignment.objectives import factors_of
from router_training.data.dataset import Dataset
from router_training.evaluation import metrics
from router_training.evaluation.metrics import CALIBRATION_BINS, Bootstrap, Hull, mean

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Judged:
    """Prompts with an outcome from every expert, and the experts' sizes; all means are weighted."""

    dataset: Dataset
    active_params_b: Vector

    @property
    def outcomes(self) -> Vector:
        return self.dataset.scores

    @property
    def weights(self) -> Vector:
        return self.dataset.weights

    @property
    def expert_means(self) -> Vector:
        return np.array([metrics.mean(column, self.weights) for column in self.outcomes.T])

    @property
    def best_single(self) -> int:
        """The best single expert in hindsight, on these prompts."""
        return int(self.expert_means.argmax())

    @property
    def hull(self) -> Hull:
        """The zero router."""
        return metrics.upper_hull(self.active_params_b, self.expert_means)

    def taken(self, chosen: Ints) -> Vector:
        """[n]: the score of each prompt's chosen expert."""
        return np.asarray(self.outcomes[np.arange(len(chosen)), chosen])

    def mean_active_params_b(self, chosen: Ints) -> float:
        return metrics.mean(self.active_params_b[chosen], self.weights)


@dataclass(frozen=True, slots=True)
class Gain:
    """A mean score and its gain over the alternative, with a 95 % interval."""

    score: float
    gain: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        return {"score": self.score, "gain": self.gain, "gain_ci95": [self.low, self.high]}


def unlimited_gain(judged: Judged, chosen: Ints, bootstrap: Bootstrap) -> Gain:
    """The gain over the best single expert in hindsight."""
    taken = judged.taken(chosen)
    difference = taken - judged.outcomes[:, judged.best_single]
    low, high = bootstrap.interval(difference[:, np.newaxis], judged.weights, lambda means: float(means[0]))
    return Gain(metrics.mean(taken, judged.weights), metrics.mean(difference, judged.weights), low, high)


def budget_gain(judged: Judged, chosen: Ints, bootstrap: Bootstrap) -> Gain:
    """The gain over the zero router at the same mean cost; each resample has its own zero router."""
    taken, spent = judged.taken(chosen), judged.active_params_b[chosen]
    columns = np.column_stack((taken, spent, judged.outcomes))

    def above_the_hull(means: Vector) -> float:
        hull = metrics.upper_hull(judged.active_params_b, means[2:])
        return float(means[0]) - hull.score_at(float(means[1]))

    gain = above_the_hull(judged.weights @ columns / judged.weights.sum())
    low, high = bootstrap.interval(columns, judged.weights, above_the_hull)
    return Gain(metrics.mean(taken, judged.weights), gain, low, high)


ROUNDING = 1e-9  # of a score: experts this close do not differ
DIAL_SETTINGS = 60  # multipliers tried
THRESHOLDS = (0.5, 0.8)  # of RouteLLM's CPT


def curve_keys(judged: Judged, expected: Vector) -> dict[str, Any]:
    """RouterBench's `aiq` and its distance from the zero router's, RouteLLM's `apgr` and `cpt` (null unless there are
    two experts, the dearer of them the better), and the corners of the `curve`; `expected` [n, experts]."""
    costs = judged.active_params_b
    chosen = [choices(expected, costs, multiplier) for multiplier in _dial(costs)]
    spent = np.array([judged.mean_active_params_b(row) for row in chosen])
    scores = np.array([metrics.mean(judged.taken(row), judged.weights) for row in chosen])
    own = metrics.upper_hull(spent, scores)
    low, high = float(costs.min()), float(costs.max())
    aiq = metrics.aiq(own, low, high)
    corners = zip(own.costs.tolist(), own.scores.tolist(), strict=True)
    return {
        "aiq": aiq,
        "delta_aiq": aiq - metrics.aiq(judged.hull, low, high),
        **_of_two(judged, expected),
        "curve": [{"mean_active_params_b": cost, "score": score} for cost, score in corners],
    }


def _of_two(judged: Judged, expected: Vector) -> dict[str, Any]:
    cheap, dear = int(judged.active_params_b.argmin()), int(judged.active_params_b.argmax())
    if expected.shape[1] != 2 or cheap == dear or judged.expert_means[dear] <= judged.expert_means[cheap] + ROUNDING:
        return {"apgr": None, "cpt": None}
    advantage = np.clip(expected[:, dear], -1.0, 1.0) - np.clip(expected[:, cheap], -1.0, 1.0)
    recovered = metrics.gap_recovered(advantage, judged.outcomes[:, cheap], judged.outcomes[:, dear], judged.weights)
    return {"apgr": recovered.mean, "cpt": {f"{100 * x:g}": recovered.share_for(x) for x in THRESHOLDS}}


def _dial(costs: Vector) -> Vector:
    """Multipliers from 0 to one at which only the cheapest expert is chosen."""
    if np.ptp(costs) <= SLACK * costs.max():
        return np.zeros(1)
    largest = 1.01 / least_step(costs)
    return np.concatenate(([0.0], np.geomspace(largest * 1e-5, largest, DIAL_SETTINGS)))


WORST_PROMPTS = 20


def confusion(labels: Ints, predicted: Ints, weights: Vector, categories: int) -> list[list[float]]:
    """[true category][predicted category]: the share of the true category's weight. Prompts without a label are left
    out; a category without prompts has zeros."""
    known = labels >= 0
    table = np.zeros((categories, categories))
    np.add.at(table, (labels[known], predicted[known]), weights[known])
    total = table.sum(axis=1, keepdims=True)
    shares: list[list[float]] = np.divide(table, total, out=np.zeros_like(table), where=total > 0).tolist()
    return shares


def reliability(confidences: Vector, hits: Vector, weights: Vector) -> list[dict[str, float]]:
    """Mean confidence and hit rate of bins of equal mass (by count), least sure first; `share` of the weight."""
    order = np.argsort(confidences, kind="stable")
    bins = np.array_split(order, max(min(CALIBRATION_BINS, len(order)), 1))
    return [
        {
            "confidence": mean(confidences[rows], weights[rows]),
            "accuracy": mean(hits[rows], weights[rows]),
            "share": float(weights[rows].sum() / weights.sum()),
        }
        for rows in bins
        if weights[rows].sum() > 0.0
    ]


def worst_prompts(
    judged: Judged, chosen: Ints, expected: Vector, probabilities: Vector, categories: Sequence[str]
) -> list[dict[str, Any]]:
    """The prompts with the largest shortfall of the chosen expert's score below the expected one.

    Only prompts on which another expert scored higher. Prompt texts are not included.
    """
    rows = np.arange(len(chosen))
    taken, best = judged.taken(chosen), judged.outcomes.max(axis=1)
    broken = np.where(best > taken, expected[rows, chosen] - taken, -np.inf)
    worst = [int(at) for at in np.argsort(-broken, kind="stable")[:WORST_PROMPTS] if np.isfinite(broken[at])]
    dataset = judged.dataset
    return [
        {
            "prompt_id": dataset.prompt_ids[at],
            "category": dataset.categories[dataset.labels[at]] if dataset.labels[at] >= 0 else None,
            "predicted": categories[int(probabilities[at].argmax())],
            "expert": dataset.experts[chosen[at]],
            "score": float(taken[at]),
            "expected_score": float(expected[at, chosen[at]]),
            "better_expert": dataset.experts[int(judged.outcomes[at].argmax())],
            "better_score": float(best[at]),
        }
        for at in worst
    ]


ROUNDING = 1e-9  # of a score: a smaller gain or loss counts as 0


@dataclass(frozen=True, slots=True)
class UnseenGroups:
    """Prompts of held-out groups with the router's `expected` scores, and the `overall` ones without categories.

    Each is [n, experts].
    """

    judged: Judged
    expected: Vector
    overall: Vector

    def priced(self, costs: list[float]) -> UnseenGroups:
        """The same with an objective's costs of the experts."""
        return replace(self, judged=replace(self.judged, active_params_b=np.array(costs)))

    @property
    def _factors(self) -> Vector:
        return factors_of(self.judged.dataset)[:, np.newaxis]

    def chosen(self, objective: ObjectiveEntry) -> Ints:
        return choices(self.expected / self._factors, self.judged.active_params_b, objective.multiplier)

    def chosen_without_categories(self, objective: ObjectiveEntry) -> Ints:
        return choices(self.overall / self._factors, self.judged.active_params_b, objective.multiplier)


def unseen_groups_gain(unseen_groups: UnseenGroups, objective: ObjectiveEntry) -> float:
    """An objective's gain on unseen groups over the same router without categories, at equal prices.

    Both scores are reduced by their cost times the multiplier. The reference is not the best expert of the unseen
    group: that expert is known in hindsight only.

    Without a budget that is the gain over the expert that is best in the groups that were seen.
    """
    judged, chosen = unseen_groups.judged, unseen_groups.chosen(objective)
    taken = metrics.mean(judged.taken(chosen), judged.weights)
    plain = unseen_groups.chosen_without_categories(objective)
    saved = judged.mean_active_params_b(plain) - judged.mean_active_params_b(chosen)
    return taken - metrics.mean(judged.taken(plain), judged.weights) + objective.multiplier * saved


def leave_group_out(unseen_groups: UnseenGroups, objective: ObjectiveEntry, bootstrap: Bootstrap) -> dict[str, Any]:
    """The block of `evaluation.json`: gain over the best single expert, in all and for each group."""
    judged, chosen = unseen_groups.judged, unseen_groups.chosen(objective)
    whole = unlimited_gain(judged, chosen, bootstrap)
    difference = judged.taken(chosen) - judged.outcomes[:, judged.best_single]
    groups = judged.dataset.groups
    per_group = {
        str(name): float(np.average(difference[groups == name], weights=judged.weights[groups == name]))
        for name in np.unique(groups)
    }
    intervals = {
        name: bootstrap.interval(difference[groups == name, np.newaxis], judged.weights[groups == name], _first)
        for name in per_group
    }
    return {
        "gain": whole.gain,
        "gain_ci95": [whole.low, whole.high],
        "per_group": per_group,
        "per_group_ci95": {name: list(interval) for name, interval in intervals.items()},
    }


def _first(means: Vector) -> float:
    return float(means[0])


def exam_failed(held_out_high: float, has_budget: bool) -> str | None:
    """The refusal of an objective that certainly loses on held-out prompts; None otherwise.

    `held_out_high` is the upper bound of the saved router's gain there.
    """
    if held_out_high >= -ROUNDING:
        return None
    rival = _rival(has_budget)
    return f"on held-out prompts it loses against {rival}: the upper bound is {100 * held_out_high:+.2f} points"


def refusal(inside_low: float, outside_gain: float | None, has_budget: bool, harm_limit: float) -> str | None:
    """Why an objective is not shipped; None if it is.

    `inside_low` is the lower bound of its gain on prompts not trained on, `outside_gain` that on unseen groups.
    """
    if inside_low <= ROUNDING:
        return f"its gain over {_rival(has_budget)} is not certain: the lower bound is {100 * inside_low:+.2f} points"
    if outside_gain is not None and outside_gain < -harm_limit - ROUNDING:
        return (
            f"on groups left out of training it changes the score by {100 * outside_gain:+.2f} points,"
            f" and the harm limit is {100 * harm_limit:.2f}"
        )
    return None


def _rival(has_budget: bool) -> str:
    return "mixing single experts at the same cost" if has_budget else "the best single expert"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One objective: its gain (over the best single expert, under a budget over the zero router) and its mean cost."""

    gain: Gain
    mean_cost: float

    def as_json(self) -> dict[str, Any]:
        return {"mean_active_params_b": self.mean_cost, **self.gain.as_json()}


def weigh_evidence(
    chosen: Mapping[str, Ints], dataset: Dataset, manifest: Manifest, bootstrap: Bootstrap
) -> dict[str, Evidence]:
    """objective -> the gain of these choices on the prompts with an outcome from every expert."""
    complete = np.flatnonzero(dataset.measures & (dataset.weights > 0.0))
    judged = Judged(dataset.rows(complete), np.array(manifest.costs()))
    found = {}
    for name, experts in chosen.items():
        priced = replace(judged, active_params_b=np.array(manifest.costs(name)))
        rival = unlimited_gain if manifest.objectives[name].budget is None else budget_gain
        gain = rival(priced, experts[complete], bootstrap)
        found[name] = Evidence(gain, priced.mean_active_params_b(experts[complete]))
    return found
