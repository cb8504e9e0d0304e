from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from router_training.gate import PREMIUM, Trial, fitted_threshold

SIMILARITIES = np.linspace(0.01, 1.0, 100)


def trial(gains: np.ndarray) -> Trial:
    return Trial(SIMILARITIES, gains, np.ones(len(gains)))


@given(st.integers(0, 1000))
def test_the_gate_costs_familiar_prompts_no_more_than_the_premium(seed: int) -> None:
    familiar = trial(np.random.default_rng(seed).normal(0.2, 1.0, 100))
    free = max(familiar.gain_at(threshold) for threshold in np.quantile(SIMILARITIES, np.linspace(0.0, 0.9, 46)))
    assert familiar.gain_at(fitted_threshold(familiar, None)) >= (1.0 - PREMIUM) * free - 1e-12 or free < 0.0


def test_harm_to_foreign_prompts_raises_the_threshold() -> None:
    familiar = trial(np.full(100, 0.1))
    harmless, harmful = trial(np.full(100, 0.1)), trial(np.where(SIMILARITIES < 0.5, -1.0, 0.1))
    assert fitted_threshold(familiar, harmless) < 0.2
    assert 0.45 < fitted_threshold(familiar, harmful) < 0.55


def test_without_outcomes_the_gate_stays_open() -> None:
    nothing = Trial(np.zeros(0), np.zeros(0), np.zeros(0))
    assert fitted_threshold(nothing, None) < 0.0
