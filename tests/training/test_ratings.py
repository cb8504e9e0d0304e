"""What ratings do to scores: as much as the chosen expert's share of a category can speak for, and no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_training.feedback import Prior, Ratings, shifted

CATEGORIES, EXPERTS = 3, 2
SCORES = np.array([[0.8, 0.3], [0.2, 0.9], [0.5, 0.5], [0.5, 0.6]])  # the last row: overall


def prior(prompts: float = 20.0, z: float = 0.0) -> Prior:
    return Prior(SCORES - z * 0.02, np.full(SCORES.shape, prompts), np.full(SCORES.shape, 0.02), z)


def ratings(rows: list[tuple[int, int, float | None]]) -> Ratings:
    """(category, expert, score) each, with a router that was sure of the category."""
    categories = np.array([row[0] for row in rows], dtype=np.int64)
    experts = np.array([row[1] for row in rows], dtype=np.int64)
    return Ratings(
        np.eye(CATEGORIES)[categories].reshape(len(rows), CATEGORIES),
        np.ones(len(rows), dtype=np.bool_),
        experts,
        SCORES[categories, experts],
        np.array([np.nan if row[2] is None else row[2] for row in rows]),
    )


Row = st.tuples(st.integers(0, CATEGORIES - 1), st.integers(0, EXPERTS - 1), st.none() | st.floats(0, 1))


@given(rows=st.lists(Row, min_size=1, max_size=40), prompts=st.floats(0, 100))
def test_scores_stay_scores_and_an_expert_never_rated_keeps_its_own(rows: Any, prompts: float) -> None:
    after = shifted(prior(prompts), ratings(rows))
    assert ((after.scores >= 0.0) & (after.scores <= 1.0)).all()
    for expert in range(EXPERTS):
        if not any(row[1] == expert and row[2] is not None for row in rows):
            assert np.array_equal(after.scores[:, expert], SCORES[:, expert])
            assert np.array_equal(after.errors[:, expert], prior().errors[:, expert])


@given(rows=st.lists(Row, max_size=30))
def test_what_was_expected_changes_nothing(rows: Any) -> None:
    as_expected = [(c, e, None if score is None else SCORES[c, e]) for c, e, score in rows]
    assert np.allclose(shifted(prior(), ratings(as_expected)).scores, SCORES)


@given(rows=st.lists(Row, min_size=1, max_size=30), chosen=st.integers(0, 29), by=st.floats(0, 1))
def test_a_better_rating_never_lowers_the_score_of_its_pair(rows: Any, chosen: int, by: float) -> None:
    category, expert, score = rows[chosen % len(rows)]
    if score is None:
        return
    better = [*rows]
    better[chosen % len(rows)] = (category, expert, min(1.0, score + by))
    before, after = (shifted(prior(), ratings(one)).scores[category, expert] for one in (rows, better))
    assert after >= before - 1e-12


@given(count=st.integers(1, 400), taken=st.integers(1, 400), score=st.floats(0, 1))
def test_no_number_of_ratings_says_more_than_the_part_that_was_taken(count: int, taken: int, score: float) -> None:
    """Expert 0 took `taken` of the category's prompts, all rated; the others went to expert 1, unrated."""
    rows: list[tuple[int, int, float | None]] = [(0, 0, score)] * taken + [(0, 1, None)] * count
    after = shifted(prior(), ratings(rows)).scores
    share = taken / (taken + count)
    assert abs(after[0, 0] - SCORES[0, 0]) <= share * abs(score - SCORES[0, 0]) + 1e-9
    assert np.array_equal(after[:-1, 1], SCORES[:-1, 1])
    assert np.array_equal(after[1:-1, 0], SCORES[1:-1, 0])  # nor of any other category


def test_many_ratings_of_an_expert_that_takes_all_prompts_become_its_score() -> None:
    after = shifted(prior(), ratings([(0, 0, 0.1)] * 20_000))
    assert after.scores[0, 0] == pytest.approx(0.1, abs=0.001)
    few = shifted(prior(prompts=1000.0), ratings([(0, 0, 0.1)] * 10)).scores[0, 0]
    assert few > 0.79  # ten ratings against a thousand prompts


def test_ratings_of_prompts_that_were_foreign_move_the_overall_mean_alone() -> None:
    outside = ratings([(0, 0, 0.0)] * 50)
    outside = replace(outside, inside=np.zeros(50, dtype=np.bool_), expected=np.full(50, SCORES[-1, 0]))
    after = shifted(prior(), outside).scores
    assert np.array_equal(after[:-1], SCORES[:-1])
    assert after[-1, 0] < 0.25


def test_more_ratings_make_a_score_more_certain() -> None:
    draw = np.random.default_rng(0)
    wide = Prior(SCORES, np.full(SCORES.shape, 5.0), np.full(SCORES.shape, 0.1))
    errors = [
        shifted(wide, ratings([(0, 0, float(draw.random() < 0.8)) for _ in range(count)])).errors[0, 0]
        for count in (20, 200, 2000)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_where_errors_were_taken_off_the_scores_they_are_taken_off_again() -> None:
    cautious = prior(z=1.0)
    rows = ratings([(0, 0, 0.8)] * 2000)
    as_the_router_said = replace(rows, expected=rows.expected - 0.02)
    after = shifted(cautious, as_the_router_said)
    assert after.scores[0, 0] == pytest.approx(0.8 - after.errors[0, 0], abs=1e-6)


def seen_by_a_deterministic_router(draw: np.random.Generator, true: npt.NDArray[np.float64], count: int) -> Ratings:
    """Every prompt goes to the expert that the table calls best; only that one is rated."""
    categories = draw.integers(0, CATEGORIES, count)
    experts = SCORES[:-1].argmax(axis=1)[categories]
    scores = (draw.random(count) < true[categories, experts]).astype(np.float64)
    memberships = np.eye(CATEGORIES)[categories]
    return Ratings(memberships, np.ones(count, dtype=np.bool_), experts, SCORES[categories, experts], scores)


def test_a_wrong_table_gets_nearer_to_the_truth_where_it_was_seen_and_no_farther_elsewhere() -> None:
    true = SCORES[:-1].copy()
    true[0, 0] = 0.1  # the table praises expert 0 in category 0, and it is bad there
    after = shifted(prior(), seen_by_a_deterministic_router(np.random.default_rng(1), true, 600)).scores
    assert abs(after[0, 0] - true[0, 0]) < 0.2
    assert after[0].argmax() == 1  # so the category changes hands
    assert np.abs(after[1:3] - true[1:3]).max() < 0.1
