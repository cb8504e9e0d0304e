from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from router_training.evaluation.gains import Judged
from router_training.evaluation.metrics import Bootstrap
from router_training.evaluation.worth import worth, worth_sentence
from tests.training.evaluation.test_robustness import dataset

SMALL, LARGE = np.zeros(40, dtype=np.int64), np.ones(40, dtype=np.int64)


def judged() -> Judged:
    """The large expert answers nine of ten prompts, the small one, at a tenth of the cost, the tenth and half of the
    others."""
    scores = [[0.0, 1.0], [1.0, 1.0]] * 18 + [[1.0, 0.0]] * 4
    return Judged(dataset(scores, [1.0] * 40), np.array([1.0, 10.0]))


def manifest(*objectives: str) -> Any:
    return SimpleNamespace(
        costs=lambda name: [1.0, 10.0],
        cost_unit="active_params_b",
        objectives={name: SimpleNamespace(budget_unit=None) for name in objectives},
    )


def told(**chosen: np.ndarray) -> dict[str, Any]:
    rows = worth(judged(), chosen, manifest(*chosen), Bootstrap(200, 0))
    return {"worth": rows, "best_single": {"expert": "large"}, "router": {"objective": next(iter(chosen))}}


def test_the_cheapest_objective_that_is_certainly_better_is_told_with_its_share_of_the_cost() -> None:
    sure = np.array([1, 0] * 18 + [0] * 4)
    spending = np.array([1, 1] * 18 + [0] * 4)
    evaluation = told(quality=spending, cheap=sure, cheapest=SMALL)
    cheap = evaluation["worth"][1]
    assert cheap["gain"] == pytest.approx(0.1)
    assert cheap["cost_share"] == pytest.approx((18 * 10 + 22) / 400)
    assert cheap["cost_share_ci95"][0] < cheap["cost_share"] < cheap["cost_share_ci95"][1]
    sentence = worth_sentence(evaluation)
    assert sentence is not None
    assert sentence.startswith("Better than the best single expert (large) with 51% (")
    assert "of its active parameters: +10.00 points (" in sentence
    assert sentence.endswith("objective cheap")


def test_a_gain_that_is_not_certain_is_not_called_one_and_an_equal_cost_no_saving() -> None:
    assert worth_sentence(told(quality=LARGE)) == (
        "Not certainly better than the best single expert (large): +0.00 points (+0.00 to +0.00), objective quality"
    )


def test_an_evaluation_from_before_has_no_sentence() -> None:
    assert worth_sentence({"router": {}, "best_single": {}}) is None
