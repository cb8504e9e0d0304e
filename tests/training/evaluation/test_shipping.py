from __future__ import annotations

from router_training.evaluation.gains import exam_failed, refusal


def test_a_gain_that_is_rounding_ships_nothing() -> None:
    assert refusal(1e-16, None, has_budget=True, harm_limit=0.01) == (
        "its gain over mixing single experts at the same cost is not certain: the lower bound is +0.00 points"
    )
    assert refusal(1e-3, None, has_budget=True, harm_limit=0.01) is None


def test_a_loss_that_is_rounding_is_none() -> None:
    assert exam_failed(-1e-16, has_budget=True) is None
    assert exam_failed(-1e-3, has_budget=False) == (
        "on held-out prompts it loses against the best single expert: the upper bound is -0.10 points"
    )
    assert refusal(0.1, -0.01 - 1e-16, has_budget=False, harm_limit=0.01) is None
