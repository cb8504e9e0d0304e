from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.budget import (
    CORRECTIONS_PER_WINDOW,
    SPREAD,
    Balance,
    Goal,
    Meter,
    Point,
    Table,
    answered,
    begun,
    dropped,
    factor,
    goal,
    values,
)
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import RouteOptions, RoutingDecision
from coe_server.routing.features import Turn
from coe_server.routing.router import Router
from tests.examples import examples
from tests.routing.small_artifact import SIZES, TEXTS, everywhere


def follow(router: Router, decision: RoutingDecision) -> None:
    """As if the decision's request had been answered."""
    with router.spending(decision) as tell:
        tell()


COSTS = np.array([8.0, 30.0, 70.0])


class Traffic:
    """Requests of a few kinds; each is expected to score like its kind's row, `vague` parts mixed with other rows."""

    def __init__(self, scores: list[list[float]], vague: float, seed: int) -> None:
        self.scores = [np.array(row) for row in scores]
        self.vague = vague
        self.draw = random.Random(seed)

    def cost(self, shares: list[float], multiplier: float) -> float:
        """What the next request costs at this multiplier, drawn with these shares of kinds."""
        (kind,) = self.draw.choices(self.scores, shares)
        part = self.vague * self.draw.random()
        expected = (1.0 - part) * kind + part * self.draw.choice(self.scores)
        return float(COSTS[int(np.argmax(values(expected, COSTS, multiplier)))])


TRAFFIC = [[0.5, 0.6, 0.7], [0.6, 0.62, 0.64], [0.2, 0.5, 0.9]]


def goal_for(target: float, window: int = 1000, start: float = 0.004) -> Goal:
    front = [Point(0.4, 8.0), Point(0.75, 70.0)]
    return goal(target, start, window, Table(np.array(TRAFFIC), COSTS, front))


def spend(traffic: Traffic, shares: list[float], balance: Balance, held: Goal, count: int, *, late: int = 0) -> Balance:
    """`count` more requests, each answered after `late` further ones were begun."""
    in_flight: deque[float] = deque()
    for _ in range(count):
        in_flight.append(traffic.cost(shares, balance.multiplier))
        balance = begun(balance, held, in_flight[-1])
        if len(in_flight) > late:
            balance = answered(balance, held, in_flight.popleft())
    return balance


@examples(25)
@given(
    st.integers(0, 10_000), st.floats(12.0, 60.0), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.004, 0.0112])
)
def test_the_last_thousand_cost_what_was_asked_for(seed: int, target: float, vague: float, start: float) -> None:
    """Also where all requests of a kind are alike, so that no fixed multiplier can meet the target."""
    held = goal_for(target, start=start)
    balance = spend(Traffic(TRAFFIC, vague, seed), [0.3, 0.3, 0.4], Balance(held.start), held, 3000)
    assert balance.mean == pytest.approx(target, rel=0.04)


@pytest.mark.parametrize("target", [16.5, 17.0, 35.5])
def test_a_wide_range_of_multipliers_that_spends_almost_the_target_is_crossed_in_time(target: float) -> None:
    """Three kinds of requests spend 16.8 B or 35.2 B at any multiplier of a wide range: nothing pulls there."""
    held = goal_for(target)
    balance = spend(Traffic(TRAFFIC, 0.0, 126), [0.3, 0.3, 0.4], Balance(held.start), held, 3000)
    assert balance.mean == pytest.approx(target, rel=0.015)


@examples(15)
@given(st.integers(0, 10_000), st.floats(15.0, 55.0))
def test_other_traffic_is_back_at_the_target_two_windows_later(seed: int, target: float) -> None:
    """On the way there the mean is never further off than what moving the multiplier from end to end takes."""
    held = goal_for(target)
    traffic = Traffic(TRAFFIC, 0.3, seed)
    balance = spend(traffic, [0.8, 0.1, 0.1], Balance(held.start), held, 2000)
    for _ in range(20):
        balance = spend(traffic, [0.05, 0.05, 0.9], balance, held, 100)
        assert balance.mean == pytest.approx(target, abs=held.largest * held.response / CORRECTIONS_PER_WINDOW)
    assert balance.mean == pytest.approx(target, rel=0.04)


@examples(50)
@given(
    st.lists(st.tuples(st.sampled_from(COSTS.tolist()), st.sampled_from([answered, dropped])), max_size=200),
    st.floats(1.0, 100.0),
    st.integers(1, 50),
)
def test_the_multiplier_never_leaves_its_bounds_nor_the_window_its_length(
    ends: list[tuple[float, Callable[[Balance, Goal, float], Balance]]], target: float, window: int
) -> None:
    held = goal_for(target, window)
    balance = Balance(held.start)
    for cost, end in ends:
        balance = end(begun(balance, held, cost), held, cost)
        assert 0.0 <= balance.multiplier <= held.largest
    paid = [cost for cost, end in ends if end is answered]
    assert balance.spent == tuple(paid[-window:])


def test_what_was_not_answered_has_cost_nothing() -> None:
    meter = Meter(goal_for(30.0))
    with meter.spending(70.0):
        assert meter.balance.multiplier > meter.goal.start
    assert meter.balance.multiplier == pytest.approx(meter.goal.start)
    assert meter.balance.mean is None


def test_at_the_largest_multiplier_every_mixture_of_rows_takes_the_cheapest() -> None:
    held = goal_for(20.0)
    mixtures = np.random.default_rng(0).dirichlet(np.ones(len(TRAFFIC)), 200) @ np.array(TRAFFIC)
    worth = np.array([values(mixture, COSTS, held.largest * 1.0001) for mixture in mixtures])
    assert (worth.argmax(axis=1) == 0).all()


def test_a_target_that_no_traffic_can_meet_is_approached_and_let_go_of_at_once() -> None:
    """At the bound nothing piles up: when the traffic changes, the multiplier comes back without delay."""
    held = goal_for(60.0)
    traffic = Traffic([[0.9, 0.2, 0.1], *TRAFFIC[1:]], 0.0, 0)
    cheap = spend(traffic, [1.0, 0.0, 0.0], Balance(held.start), held, 5000)
    assert (cheap.multiplier, cheap.mean) == (0.0, 8.0)
    dear = spend(traffic, [0.0, 0.0, 1.0], cheap, held, 200)
    assert dear.multiplier > 0.0


@pytest.mark.parametrize("late", [20, 100, 300])
def test_answers_that_come_late_do_not_make_it_swing(late: int) -> None:
    held = goal_for(40.0)
    at_once, later = (
        spend(Traffic(TRAFFIC, 0.3, 1), [0.3, 0.3, 0.4], Balance(held.start), held, 3000, late=delay)
        for delay in (0, late)
    )
    assert later.multiplier == at_once.multiplier
    assert later.mean == pytest.approx(40.0, rel=0.01)


def test_the_same_answers_give_the_same_multiplier() -> None:
    held = goal_for(30.0)
    first, second = (spend(Traffic(TRAFFIC, 0.3, 7), [0.3, 0.3, 0.4], Balance(held.start), held, 300) for _ in range(2))
    assert first == second


def test_experts_of_one_size_leave_the_multiplier_where_it_is() -> None:
    held = goal(10.0, 0.0, 100, Table(np.array([[0.2, 0.9]]), np.array([10.0, 10.0]), []))
    assert begun(Balance(0.0), held, 10.0).multiplier == 0.0


def test_a_meter_told_by_many_threads_loses_no_answer() -> None:
    meter = Meter(goal_for(30.0))

    def ask() -> None:
        for _ in range(500):
            with meter.spending(70.0) as tell:
                tell()

    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.balance == Balance(meter.goal.largest, (70.0,) * 1000)


def test_a_decision_shows_target_mean_and_multiplier_and_answers_move_them(folder: Path) -> None:
    router = Router.load(folder, budget_window=10)
    question, options = Conversation.of_prompt(TEXTS["code"]), RouteOptions(objective="cheap")
    first = router.route(question, options, everywhere())
    assert (first.budget.target, first.budget.mean) == (10.0, None)
    assert first.budget.multiplier == 0.01 * factor(question.turns)
    assert first.expert == "coder"
    follow(router, first)
    second = router.route(question, options, everywhere())
    assert second.budget.mean == SIZES["coder"]
    assert second.budget.multiplier < first.budget.multiplier


def test_cheap_answers_make_room_for_a_dear_one(folder: Path) -> None:
    """Coder alone would spend 7 B of 10 B: now and then the big expert answers, which is worth 0.02 more."""
    router = Router.load(folder, budget_window=100)
    question, options = Conversation.of_prompt(TEXTS["code"]), RouteOptions(objective="cheap")
    taken = []
    for _ in range(1000):
        decision = router.route(question, options, everywhere())
        follow(router, decision)
        taken.append(SIZES[decision.expert])
    assert np.mean(taken[-500:]) == pytest.approx(10.0, rel=0.05)


def test_named_experts_and_other_objectives_move_no_budget(folder: Path) -> None:
    router = Router.load(folder, budget_window=10)
    question = Conversation.of_prompt(TEXTS["code"])
    for options in (RouteOptions(expert="big", objective="cheap"), RouteOptions(objective="quality")):
        follow(router, router.route(question, options, everywhere()))
    reading = router.route(question, RouteOptions(objective="cheap"), everywhere()).budget
    assert (reading.mean, reading.multiplier) == (None, 0.01 * factor(question.turns))


def test_without_a_window_the_stored_multiplier_stays(folder: Path) -> None:
    router = Router.load(folder)
    question, options = Conversation.of_prompt(TEXTS["code"]), RouteOptions(objective="cheap")
    follow(router, router.route(question, options, everywhere()))
    reading = router.route(question, options, everywhere()).budget
    assert (reading.mean, reading.multiplier) == (None, 0.01 * factor(question.turns))


@given(st.text(), st.text())
def test_a_factor_is_that_of_the_text_and_never_below_one(first: str, second: str) -> None:
    turns = (Turn(first, 0.5), Turn(second))
    assert factor(turns) == factor(turns)
    assert 1.0 <= factor(turns) < 1.0 + SPREAD


def test_factors_are_spread_evenly_over_texts() -> None:
    found = np.array([factor((Turn(f"prompt number {number}"),)) for number in range(2000)])
    shares, _ = np.histogram(found, bins=10, range=(1.0, 1.0 + SPREAD))
    assert shares.min() > 150
    assert shares.max() < 250
