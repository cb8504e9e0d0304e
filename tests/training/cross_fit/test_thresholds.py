from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.conversation import Conversation
from router_training.cross_fit.thresholds import LADDER, OPEN, USUAL, Attempts, Ramp, View, fitted_step, ramp_at
from router_training.data.dataset import Dataset

SIMILARITIES = np.linspace(0.0, 1.0, 101)


def two_experts(gains: np.ndarray, groups: int = 10) -> tuple[View, Dataset]:
    """Prompts where the categories name the second expert and the overall means the first."""
    n = len(gains)
    view = View(SIMILARITIES[:n], np.tile([0.0, 1.0], (n, 1)), np.tile([0.6, 0.4], (n, 1)))
    outcomes = np.column_stack((np.full(n, 0.5), 0.5 + gains / 2))
    talks = (Conversation.of_prompt("x"),) * n
    names = np.array([f"group {row % groups}" for row in range(n)], dtype=str)
    return view, Dataset(
        ("x",) * n, talks, ("c",), np.zeros(n, dtype=np.int64), names, np.ones(n), ("a", "b"), outcomes, np.arange(n)
    )


def attempts(view: View) -> Attempts:
    ramps = [ramp_at(step, SIMILARITIES) for step in range(len(LADDER))]
    return Attempts(tuple(view.expected(ramp) for ramp in ramps), view.overall)


def step_for(gains: np.ndarray, groups: int = 10) -> int:
    view, dataset = two_experts(gains, groups)
    return fitted_step(attempts(view), dataset)


@given(st.floats(-1.0, 1.0), st.floats(0.0, 1.0))
def test_trust_grows_from_nothing_to_all_and_expectations_with_it(threshold: float, width: float) -> None:
    ramp = Ramp(threshold, threshold + width)
    trust = ramp.trust(SIMILARITIES)
    assert (np.diff(trust) >= 0.0).all()
    assert (trust[threshold > SIMILARITIES] == 0.0).all()
    assert (trust[threshold + width <= SIMILARITIES] == 1.0).all()
    view, _ = two_experts(np.zeros(101))
    assert view.expected(ramp) == pytest.approx(view.overall + trust[:, np.newaxis] * (view.soft - view.overall))


def test_the_ramp_lies_between_quantiles_of_familiar_prompts() -> None:
    assert ramp_at(USUAL, SIMILARITIES) == Ramp(*LADDER[USUAL])
    assert ramp_at(USUAL, np.zeros(0)) == OPEN


def test_groups_that_agree_move_the_ramp_and_noise_does_not() -> None:
    _, dataset = two_experts(np.zeros(101))
    assert fitted_step(None, dataset) == USUAL
    assert step_for(np.full(101, 0.2)) == USUAL - 1
    assert step_for(np.where(SIMILARITIES < 0.28, -1.0, 0.1)) == USUAL + 1
    assert step_for(np.full(101, -0.5)) == len(LADDER) - 1
    assert step_for(np.random.default_rng(0).normal(-0.01, 1.0, 101)) == USUAL


def test_one_bad_group_is_no_agreement() -> None:
    one_bad = np.where(np.arange(101) % 10 == 3, -1.0, 0.0)
    assert step_for(one_bad) == USUAL
    assert step_for(one_bad, groups=1) == USUAL


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_the_gate_never_opens_further_where_every_group_loses_by_it(seed: int, groups: int) -> None:
    generator = np.random.default_rng(seed)
    losses = -generator.random(101) * (generator.random(101) < generator.random())
    assert step_for(losses, groups) >= USUAL


@given(st.integers(0, 10_000))
def test_a_single_group_moves_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    assert step_for(generator.uniform(-1.0, 1.0) + generator.random(101), groups=1) == USUAL
