from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import DatasetError
from router_training.assignment.objectives import score_table, shares_of


@given(st.integers(0, 1000), st.floats(0.0, 50.0))
def test_sure_categories_get_their_mean_drawn_towards_the_overall_mean(seed: int, shrinkage: float) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, 60)
    outcomes, weights = generator.random((60, 2)), generator.random(60) + 0.1
    table = score_table(np.eye(3)[labels], outcomes, weights, shrinkage)
    shares = weights / weights.mean()
    overall = shares @ outcomes / 60
    for category in range(3):
        mass = shares * (labels == category)
        mean = mass @ outcomes / mass.sum()
        trust = mass.sum() / (mass.sum() + shrinkage)
        assert table.scores[category] == pytest.approx(trust * mean + (1 - trust) * overall, abs=1e-4)
    assert table.overall_scores == pytest.approx(overall)
    assert table.counts[:, 0].tolist() == np.bincount(labels, minlength=3).tolist()


@given(st.integers(1, 60), st.integers(0, 1000))
def test_an_expert_that_is_always_right_scores_1_and_not_a_hair_more(prompts: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities, weights = generator.dirichlet(np.ones(3), prompts), generator.random(prompts) + 0.1
    outcomes = np.column_stack((np.ones(prompts), np.zeros(prompts), np.full(prompts, 0.1)))
    table = score_table(probabilities, outcomes, weights, 5.0)
    assert table.overall_scores[:2].tolist() == [1.0, 0.0]
    assert (table.scores >= 0.0).all()
    assert (table.scores <= 1.0).all()
    assert table.scores[:, 0] == pytest.approx(1.0)


def test_unsure_probabilities_are_unmixed() -> None:
    """With scores 0 and 1 and probabilities that mean what they say, averages by likeliest category say 0.2 and 0.8."""
    probabilities = np.tile([[0.8, 0.2], [0.2, 0.8]], (500, 1))
    outcomes = probabilities[:, 1:]
    table = score_table(probabilities, outcomes, np.ones(1000), 0.0)
    assert table.scores[:, 0] == pytest.approx([0.0, 1.0], abs=1e-3)


def test_a_prompt_counts_for_its_own_category_alone_and_with_its_probabilities_where_it_has_none() -> None:
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.3, 0.7]])
    assert shares_of(np.array([0, 1, -1]), probabilities).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]]


def test_missing_outcomes_are_missing_and_not_zero() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), 200)
    outcomes, weights = generator.random((200, 3)), generator.random(200)
    gaps = outcomes.copy()
    gaps[generator.random(outcomes.shape) < 0.3] = np.nan
    table = score_table(probabilities, gaps, weights, 5.0)
    for expert in range(3):
        rows = ~np.isnan(gaps[:, expert])
        alone = score_table(probabilities[rows], gaps[rows][:, [expert]], weights[rows], 5.0)
        assert table.scores[:, expert] == pytest.approx(alone.scores[:, 0])
        assert table.standard_errors[:, expert] == pytest.approx(alone.standard_errors[:, 0], nan_ok=True)


def test_the_standard_error_of_a_sure_category_is_that_of_its_mean() -> None:
    outcomes = np.random.default_rng(0).random((400, 1))
    table = score_table(np.ones((400, 1)), outcomes, np.ones(400), 0.0)
    assert table.standard_errors[0, 0] == pytest.approx(outcomes.std() / 20.0, rel=1e-6)
    assert table.overall_errors[0] == pytest.approx(outcomes.std(ddof=1) / 20.0, rel=1e-6)


def test_a_category_without_prompts_keeps_the_overall_mean_and_no_error() -> None:
    table = score_table(np.array([[1.0, 0.0]] * 10), np.linspace(0, 1, 10)[:, np.newaxis], np.ones(10), 0.0)
    assert table.scores[1, 0] == pytest.approx(0.5)
    assert np.isnan(table.standard_errors[1, 0])


def test_an_expert_without_an_outcome_is_refused() -> None:
    with pytest.raises(DatasetError, match="expert number 2"):
        score_table(np.ones((3, 1)), np.array([[1.0, np.nan]] * 3), np.ones(3), 5.0)
