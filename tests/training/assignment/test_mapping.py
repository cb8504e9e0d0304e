from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_training.assignment.mapping import front, solve
from router_training.assignment.milp import Problem, Solution, choices, fitted_multiplier, judged, mean_cost
from tests.examples import examples

TOLERANCE = 1e-6  # HiGHS's own


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    categories, experts = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    tenths = st.integers(0, 10).map(lambda n: n / 10)
    scores = [[draw(tenths) for _ in range(experts)] for _ in range(categories)]
    shares = np.array([draw(st.integers(1, 5)) for _ in range(categories)], dtype=float)
    scale = draw(st.sampled_from([0.0001, 1.0, 100.0]))
    active = [draw(st.integers(1, 9)) * scale for _ in range(experts)]
    total = [size * draw(st.integers(1, 3)) for size in active]
    pairs = st.tuples(st.integers(0, categories - 1), st.integers(0, experts - 1))
    return Problem(
        np.array(scores),
        shares / shares.sum(),
        np.array(active),
        np.array(total),
        hosted_params_b=draw(st.none() | st.integers(1, 30).map(lambda n: n * scale * 1.01)),
        max_experts=draw(st.none() | st.integers(1, experts)),
        pins=dict(draw(st.lists(pairs, max_size=1))),
        bans=frozenset(draw(st.lists(pairs, max_size=2))),
    )


def allowed_mappings(problem: Problem, budget: float | None) -> list[tuple[int, ...]]:
    """Every mapping within all limits, by trying them all."""
    categories, experts = problem.scores.shape
    return [mapping for mapping in product(range(experts), repeat=categories) if allows(problem, mapping, budget)]


def allows(problem: Problem, mapping: tuple[int, ...], budget: float | None) -> bool:
    used = sorted(set(mapping))
    return (
        all(pair not in problem.bans for pair in enumerate(mapping))
        and all(mapping[category] == expert for category, expert in problem.pins.items())
        and (problem.max_experts is None or len(used) <= problem.max_experts)
        and (problem.hosted_params_b is None or problem.total_params_b[used].sum() <= problem.hosted_params_b)
        and (budget is None or cost(problem, mapping) <= budget)
    )


def score(problem: Problem, mapping: tuple[int, ...]) -> float:
    return float(problem.shares @ problem.scores[np.arange(len(mapping)), list(mapping)])


def cost(problem: Problem, mapping: tuple[int, ...]) -> float:
    return float(problem.shares @ problem.active_params_b[list(mapping)])


@examples(150)
@given(problems(), st.none() | st.floats(0.05, 1.2))
def test_the_solution_is_the_best_of_all_mappings(problem: Problem, budget_share: float | None) -> None:
    budget = None if budget_share is None else budget_share * float(problem.active_params_b.max())
    possible = allowed_mappings(problem, budget)
    solution = solve(problem, active_params_b=budget)
    if solution is None:
        assert not possible
        return
    mapping = tuple(solution.experts.tolist())
    assert allows(problem, mapping, None if budget is None else budget * (1 + TOLERANCE))
    best = max((score(problem, one) for one in possible), default=0.0)
    assert solution.score >= best - TOLERANCE
    assert solution.score == pytest.approx(score(problem, mapping))
    assert solution.mean_active_params_b == pytest.approx(cost(problem, mapping))


@examples(60)
@given(problems(), st.lists(st.floats(0.05, 1.2), min_size=2, max_size=5))
def test_a_larger_budget_never_scores_less(problem: Problem, shares: list[float]) -> None:
    largest = float(problem.active_params_b.max())
    solutions = [solve(problem, active_params_b=share * largest) for share in sorted(shares)]
    scores = [-1.0 if one is None else one.score for one in solutions]
    assert all(low <= high + TOLERANCE for low, high in pairwise(scores))


@examples(60)
@given(problems())
def test_the_front_is_the_hull_of_all_mappings(problem: Problem) -> None:
    points = front(problem)
    possible = allowed_mappings(problem, None)
    if not possible:
        assert points == []
        return
    costs = [point.mean_active_params_b for point in points]
    assert costs == sorted(costs)
    for mapping in possible:
        assert height(points, cost(problem, mapping)) >= score(problem, mapping) - 1e-5


def height(points: list[Solution], at: float) -> float:
    """The front's score at a cost, by mixing neighbours."""
    return float(np.interp(at, [p.mean_active_params_b for p in points], [p.score for p in points]))


SIZED = st.sampled_from([(0.0007, 0.0025), (7.0, 9.0, 70.0), (1.0, 1.0, 4.0)])


@examples(100)
@given(st.data(), SIZED, st.floats(0.0, 1.0))
def test_the_multiplier_meets_the_budget_and_wastes_little_of_it(
    data: st.DataObject, sizes: tuple[float, ...], richness: float
) -> None:
    active = np.array(sizes)
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    expected = generator.random((200, len(active)))
    weights = generator.random(200) + 0.1
    budget = float(active.min() + richness * (active.max() - active.min()))
    multiplier = fitted_multiplier(expected, active, weights, budget)
    spent = mean_cost(expected, active, weights, multiplier)
    assert spent <= budget * (1 + 1e-9)
    free = mean_cost(expected, active, weights, 0.0)
    biggest_prompt = float(weights.max() / weights.sum()) * float(active.max() - active.min())
    assert spent >= min(free, budget) * 0.97 - 2 * biggest_prompt


@given(st.integers(0, 1000))
def test_the_mean_cost_never_rises_with_the_multiplier(seed: int) -> None:
    generator = np.random.default_rng(seed)
    expected, active = generator.random((50, 4)), generator.random(4) + 0.1
    costs = [mean_cost(expected, active, np.ones(50), step) for step in np.linspace(0.0, 5.0, 20)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(costs))


def test_without_a_budget_nothing_is_paid_for_parameters() -> None:
    assert fitted_multiplier(np.array([[0.1, 0.9]]), np.array([1.0, 100.0]), np.ones(1), None) == 0.0


def test_a_multiplier_stands_clear_of_the_prompts_it_turned() -> None:
    """Two kinds of prompt; the dear expert is worth 0.1 more on one and 0.5 more on the other."""
    expected = np.array([[0.5, 0.6]] * 50 + [[0.4, 0.9]] * 50)
    multiplier = fitted_multiplier(expected, np.array([1.0, 2.0]), np.ones(100), 1.6)
    assert 0.15 < multiplier < 0.45
    assert mean_cost(expected, np.array([1.0, 2.0]), np.ones(100), multiplier) == pytest.approx(1.5)


def test_equal_values_go_to_the_smaller_expert() -> None:
    """What differs by rounding is equal: 0.1 + 0.2 is no better than 0.3."""
    expected = np.array([[0.5, 0.5, 0.5], [0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3 + 1e-6]])
    assert choices(expected, np.array([9.0, 3.0, 7.0]), 0.0).tolist() == [1, 1, 2]


def test_a_budget_is_spent_where_two_experts_cost_the_same_up_to_rounding() -> None:
    """Between costs that differ by nothing no multiplier decides, and none is searched for."""
    expected = np.random.default_rng(0).random((400, 3))
    costs = np.array([7.0, 7.000000000000001, 70.0])
    weights = np.ones(400)
    multiplier = fitted_multiplier(expected, costs, weights, 20.0)
    assert 19.0 <= mean_cost(expected, costs, weights, multiplier) <= 20.0


def test_scores_and_costs_of_a_solution_are_within_those_of_its_experts() -> None:
    """Shares of traffic sum to 1 up to rounding."""
    shares = np.full(6, 1 / 6) + 1e-16
    assert shares.sum() > 1.0
    problem = Problem(np.ones((6, 1)), shares, np.array([7.0]), np.array([7.0]))
    found = solve(problem)
    assert found is not None
    assert (found.score, found.mean_active_params_b) == (1.0, 7.0)


def test_a_solution_without_a_proven_bound_has_a_gap_that_is_a_number() -> None:
    """Each category at its best expert is a bound of its own."""
    problem = Problem(np.array([[0.2, 0.9]]), np.ones(1), np.array([1.0, 7.0]), np.array([1.0, 7.0]))
    assert judged(problem, np.array([0]), 0.0, np.inf).gap == pytest.approx(0.7 / 0.2)
    assert judged(problem, np.array([1]), 0.0, np.inf).gap == 0.0


def test_a_front_whose_ends_cost_the_same_is_one_point() -> None:
    scores = np.array([[0.2, 0.9], [0.3, 0.8]])
    costs = np.array([7.0, 7.000000000000001])
    (point,) = front(Problem(scores, np.array([0.5, 0.5]), costs, costs))
    assert point.experts.tolist() == [1, 1]


def test_two_hundred_categories_and_a_hundred_experts_are_solved_to_the_optimum() -> None:
    generator = np.random.default_rng(0)
    active = generator.uniform(1, 70, 100)
    problem = Problem(generator.random((200, 100)), np.full(200, 1 / 200), active, active)
    solution = solve(problem, active_params_b=20.0)
    assert solution is not None
    assert solution.mean_active_params_b <= 20.0 * (1 + TOLERANCE)
    assert solution.gap <= 1e-3
