from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.learning import LARGEST_STEP, SHARE_OF_ONE_KEY, Ratings, admitted, learned, stepped


def rated(means: list[list[float]], each: int, seed: int = 0, expected: float = 0.5) -> Ratings:
    chance, shape = np.random.default_rng(seed), (len(means), len(means[0]))
    categories, experts = (axis.repeat(each) for axis in np.indices(shape).reshape(2, -1))
    scores = (chance.random(len(categories)) < np.array(means)[categories, experts]).astype(np.float64)
    return Ratings(categories, experts, scores, np.full(len(scores), expected))


def test_without_ratings_no_expert_is_better_and_draws_differ() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    found = learned(Ratings(nothing, nothing, np.zeros(0), np.zeros(0)), 3, 4)
    assert not found.means.any()
    assert set(found.draws[:, 0].argmax(axis=1)) == {0, 1, 2, 3}


def test_what_is_common_to_all_experts_of_a_category_moves_nothing() -> None:
    hard, easy = [0.2, 0.2], [0.9, 0.9]
    found = learned(rated([hard, easy], 400), 2, 2)
    assert np.abs(found.means).max() < 0.03
    assert np.abs(found.means.sum(axis=1)).max() < 1e-9


def test_an_expert_that_is_better_everywhere_is_so_where_it_was_never_rated() -> None:
    one = rated([[0.8, 0.4], [0.8, 0.4], [0.8, 0.4]], 200)
    seen = one.categories < 2
    few = Ratings(one.categories[seen], one.experts[seen], one.scores[seen], one.expected[seen])
    assert learned(few, 3, 2).means[2, 0] > 0.05


def test_opposite_categories_are_told_apart_with_enough_ratings() -> None:
    found = learned(rated([[0.8, 0.5], [0.5, 0.8]], 300), 2, 2)
    assert found.means.argmax(axis=1).tolist() == [0, 1]


def test_a_trained_table_that_is_right_hardly_moves() -> None:
    means = [[0.8, 0.5], [0.5, 0.8]]
    ratings = rated(means, 300)
    expected = np.array(means)[ratings.categories, ratings.experts]
    found = learned(Ratings(ratings.categories, ratings.experts, ratings.scores, expected), 2, 2)
    assert np.abs(found.means).max() < 0.03


def test_a_step_is_bounded_and_ends_at_the_goal() -> None:
    table, goal = np.zeros((1, 2)), np.array([[0.12, -0.12]])
    for _ in range(3):
        after = stepped(table, goal)
        assert np.abs(after - table).max() <= LARGEST_STEP + 1e-12
        table = after
    assert np.allclose(table, goal)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 14)), max_size=120))
def test_no_key_has_more_than_its_share_of_a_cell(rows: list[tuple[str, int]]) -> None:
    keys = [f"key {key}" for _, key in rows]
    kept = admitted([cell for cell, _ in rows], keys)
    for cell in "ab":
        mine = [place for place, (one, _) in enumerate(rows) if one == cell]
        counts = Counter(keys[place] for place in mine if kept[place])
        assert set(counts) == {keys[place] for place in mine}  # each key is heard
        share = max(SHARE_OF_ONE_KEY, 1.0 / len(counts)) if counts else 1.0
        assert all(count == 1 or count <= share * sum(counts.values()) + 1e-9 for count in counts.values())
