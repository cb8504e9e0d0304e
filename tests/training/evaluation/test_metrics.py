from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router_training.evaluation.metrics import (
    Bootstrap,
    Hull,
    aiq,
    brier_score,
    category_ceiling,
    expected_calibration_error,
    gap_recovered,
    mean,
    risk_coverage,
    upper_hull,
)

ONES = np.ones(4)
points = st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=8)


def test_the_hull_leaves_out_what_mixing_beats() -> None:
    hull = upper_hull(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.2, 0.3, 0.6, 0.5]))
    assert hull.costs.tolist() == [1.0, 3.0]
    assert hull.scores.tolist() == [0.2, 0.6]
    assert hull.score_at(2.0) == pytest.approx(0.4)
    assert hull.score_at(9.0) == 0.6
    assert hull.score_at(0.5) == 0.2


@given(points)
@example([(0.1, 0.0), (0.10000000000000002, 1.0)])
@example([(0.1, 0.0), (0.10000000001, 1.0), (100.0, 1.0)])
def test_no_mixture_of_two_points_lies_above_the_hull(drawn: list[tuple[float, float]]) -> None:
    """At a cost that is a little larger than the mixture's: a mean cost is known up to rounding, and a hull may be as
    good as upright there."""
    costs, scores = np.array([c for c, _ in drawn]), np.array([s for _, s in drawn])
    hull = upper_hull(costs, scores)
    for first in range(len(drawn)):
        for second in range(len(drawn)):
            for part in (0.0, 0.25, 0.5):
                cost = part * costs[first] + (1 - part) * costs[second]
                assert hull.score_at(cost * (1.0 + 1e-8)) >= part * scores[first] + (1 - part) * scores[second] - 1e-9


@given(points)
def test_every_corner_of_the_hull_is_one_of_the_points(drawn: list[tuple[float, float]]) -> None:
    hull = upper_hull(np.array([c for c, _ in drawn]), np.array([s for _, s in drawn]))
    assert set(zip(hull.costs.tolist(), hull.scores.tolist(), strict=True)) <= set(drawn)


def test_points_closer_than_rounding_are_one() -> None:
    hull = upper_hull(np.array([7.0, 7.000000000000001, 70.0, 70.00000000000001]), np.array([0.5, 0.6, 0.9, 0.8]))
    assert hull.costs.tolist() == [7.000000000000001, 70.0]
    assert hull.scores.tolist() == [0.6, 0.9]
    assert hull.score_at(7.0) == 0.6


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e9)), min_size=1, max_size=40))
@example([(1.0, 0.1)] * 10)
@example([(0.1, 0.3)] * 3)
def test_a_mean_is_never_outside_its_values(drawn: list[tuple[float, float]]) -> None:
    values, weights = np.array([v for v, _ in drawn]), np.array([w for _, w in drawn])
    if weights.sum() > 0.0:
        assert values.min() <= mean(values, weights) <= values.max()


def test_aiq_is_the_mean_height_of_the_hull() -> None:
    hull = Hull(np.array([1.0, 3.0]), np.array([0.2, 0.6]))
    assert aiq(hull, 1.0, 3.0) == pytest.approx(0.4)
    assert aiq(hull, 1.0, 5.0) == pytest.approx((0.4 * 2 + 0.6 * 2) / 4)
    assert aiq(hull, 2.0, 2.0) == pytest.approx(0.4)


def test_means_are_weighted() -> None:
    assert mean(np.array([0.0, 1.0]), np.array([1.0, 3.0])) == 0.75


def test_the_category_ceiling_takes_the_best_expert_of_each_category() -> None:
    outcomes = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert category_ceiling(outcomes, np.array([0, 0, 1, 1]), ONES) == 0.75
    assert category_ceiling(outcomes, np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 3.0, 1.0])) == pytest.approx(5 / 6)
    assert category_ceiling(outcomes, np.full(4, -1), ONES) is None


def test_calibration_error_is_the_gap_between_confidence_and_hits_in_each_bin() -> None:
    # 30 prompts, 15 bins of two: 10 bins at 0.9 with one hit of two, 5 bins at 0.5 with one hit of two
    confidences = np.array([0.9] * 20 + [0.5] * 10)
    hits = np.array([1.0, 0.0] * 15)
    assert expected_calibration_error(confidences, hits, np.ones(30)) == pytest.approx(0.4 * 20 / 30)


def test_fewer_prompts_than_bins_are_their_own_bins() -> None:
    assert expected_calibration_error(np.array([1.0, 0.25]), np.array([1.0, 0.0]), np.ones(2)) == pytest.approx(0.125)


def test_brier_score_adds_up_over_the_categories() -> None:
    probabilities = np.array([[0.8, 0.2], [0.5, 0.5]])
    assert brier_score(probabilities, np.array([0, 1]), np.ones(2)) == pytest.approx((0.04 + 0.04 + 0.25 + 0.25) / 2)
    assert brier_score(probabilities[:1], np.array([-1]), np.ones(1)) == pytest.approx(0.64 + 0.04 + 1.0)


def test_risk_coverage_takes_the_confident_prompts_first() -> None:
    curve = risk_coverage(np.array([0.1, 0.9, 0.5, 0.7]), np.array([0.0, 1.0, 0.0, 1.0]), ONES, steps=4)
    assert curve == [(0.25, 1.0), (0.5, 1.0), (0.75, pytest.approx(2 / 3)), (1.0, 0.5)]


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    """100 samples of 100 coin tosses: 95 of the intervals should hold 0.5, fewer than 87 would be a one in 1,000."""
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        tosses = (generator.random((100, 1)) < 0.5).astype(float)
        low, high = Bootstrap(200, seed).interval(tosses, np.ones(100), lambda means: float(means[0]))
        hits += low <= 0.5 <= high
    assert 87 <= hits <= 100


def test_the_interval_keeps_pairs_together() -> None:
    """Two noisy columns with a constant difference: the difference has no spread."""
    noise = np.random.default_rng(0).random(50)
    columns = np.column_stack((noise + 0.1, noise))
    low, high = Bootstrap(100, 0).interval(columns, np.ones(50), lambda means: float(means[0] - means[1]))
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.1))


def test_aiq_of_a_router_worked_out_by_hand() -> None:
    """Experts (1, 0.5) and (5, 0.7): the zero router rises by 0.05 for each unit, so its mean height is 0.6. A router
    through (2, 0.65) has the areas 0.575 over 1 and 0.675 over 3: (0.575 + 2.025) / 4 = 0.65."""
    experts = upper_hull(np.array([1.0, 5.0]), np.array([0.5, 0.7]))
    router = upper_hull(np.array([1.0, 2.0, 5.0]), np.array([0.5, 0.65, 0.7]))
    assert aiq(experts, 1.0, 5.0) == pytest.approx(0.6)
    assert aiq(router, 1.0, 5.0) == pytest.approx(0.65)


def test_two_experts_the_gap_closes_as_routellm_counts_it() -> None:
    """Four prompts; the dear expert gains on the two that the router sends it first, and nothing on the others."""
    cheap, dear = np.array([0.0, 0.0, 1.0, 1.0]), np.ones(4)
    recovered = gap_recovered(np.array([4.0, 3.0, 2.0, 1.0]), cheap, dear, ONES)
    assert recovered.shares.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert recovered.recovered.tolist() == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert recovered.mean == pytest.approx(0.75)
    assert recovered.share_for(0.5) == pytest.approx(0.25)
    assert recovered.share_for(0.8) == pytest.approx(0.4)


def test_a_router_that_cannot_tell_is_a_coin() -> None:
    """RouteLLM's random router: APGR 0.5, CPT(50 %) 0.5, CPT(80 %) 0.8."""
    recovered = gap_recovered(np.zeros(4), np.array([0.0, 0.0, 1.0, 1.0]), np.ones(4), np.array([1.0, 2.0, 3.0, 4.0]))
    assert recovered.mean == pytest.approx(0.5)
    assert recovered.share_for(0.5) == pytest.approx(0.5)
    assert recovered.share_for(0.8) == pytest.approx(0.8)


@given(st.integers(0, 1000))
def test_the_best_order_closes_the_gap_fastest(seed: int) -> None:
    draw = np.random.default_rng(seed)
    cheap = draw.random(30)
    dear = np.clip(cheap + draw.normal(0.1, 0.3, 30), 0, 1)
    if dear.mean() <= cheap.mean():
        return
    best = gap_recovered(dear - cheap, cheap, dear, np.ones(30))
    other = gap_recovered(draw.random(30), cheap, dear, np.ones(30))
    assert best.mean >= other.mean - 1e-9
    assert best.recovered[-1] == pytest.approx(1.0)
