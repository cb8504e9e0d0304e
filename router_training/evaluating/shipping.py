"""Does an objective earn its place? Gain inside, no harm outside; else the sentence that says what is missing. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.routing.manifest import ObjectiveEntry
from router_training.drafting.objectives import factors_of
from router_training.evaluating import metrics
from router_training.evaluating.gains import Judged, unlimited_gain
from router_training.evaluating.metrics import Bootstrap
from router_training.step_two.pricing import choices

ROUNDING = 1e-9  # of a score: a gain or a loss this small is none

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Foreign:
    """Prompts whose groups were unseen; the scores the router expects there, and would if it trusted no category:
    `expected` and `overall`, each [n, experts]."""

    judged: Judged
    expected: Vector
    overall: Vector

    def priced(self, costs: list[float]) -> Foreign:
        """The same with what each expert costs an objective."""
        return replace(self, judged=replace(self.judged, active_params_b=np.array(costs)))

    @property
    def _factors(self) -> Vector:
        return factors_of(self.judged.dataset)[:, np.newaxis]

    def chosen(self, objective: ObjectiveEntry) -> Ints:
        return choices(self.expected / self._factors, self.judged.active_params_b, objective.multiplier)

    def chosen_without_categories(self, objective: ObjectiveEntry) -> Ints:
        return choices(self.overall / self._factors, self.judged.active_params_b, objective.multiplier)


def foreign_gain(foreign: Foreign, objective: ObjectiveEntry) -> float:
    """An objective's gain there over the same router without categories, both less what they spend at the multiplier's
    price: an expert that was good in a group looks good in hindsight, but nobody could have known.

    Without a budget that is the gain over the expert that is best in the groups that were seen.
    """
    judged, chosen = foreign.judged, foreign.chosen(objective)
    taken = metrics.mean(judged.taken(chosen), judged.weights)
    plain = foreign.chosen_without_categories(objective)
    saved = judged.mean_active_params_b(plain) - judged.mean_active_params_b(chosen)
    return taken - metrics.mean(judged.taken(plain), judged.weights) + objective.multiplier * saved


def leave_group_out(foreign: Foreign, objective: ObjectiveEntry, bootstrap: Bootstrap) -> dict[str, Any]:
    """The block of `evaluation.json`: gain over the best single expert, in all and for each group."""
    judged, chosen = foreign.judged, foreign.chosen(objective)
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
    """Why an objective is not shipped though its evidence is good: the router as saved certainly lost on prompts held
    out; None if it did not. `held_out_high` is the upper bound of its gain there."""
    if held_out_high >= -ROUNDING:
        return None
    rival = _rival(has_budget)
    return f"on the prompts held out it loses against {rival}: the upper bound is {100 * held_out_high:+.2f} points"


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
