"""Budgets on the price, lower bounds and hosted sets, from configuration to decision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coe_server.routing import artifact as artifacts
from coe_server.routing.budget import SPREAD
from router_training import in_silence
from router_training.assignment.mapping import improved_set
from router_training.assignment.objectives import (
    Budget,
    Grounds,
    Limits,
    decided,
    lower_bounds,
    score_table,
    solve_objective,
)
from router_training.config import read_config
from router_training.fit import fit
from tests.training.recorded import SIZES, write_run

PRICES = {"fr": 0.1, "py": 0.1, "un": 0.1, "gen": 0.5}


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with prices instead of sizes, under a budget on the price."""
    folder = tmp_path_factory.mktemp("priced")
    experts = [{"name": name, "price_per_million_tokens": price} for name, price in PRICES.items()]
    objectives = {"quality": {}, "cheap": {"price_per_million_tokens": 0.15}}
    config = read_config(write_run(folder, experts=experts, objectives=objectives))
    fit(config, folder / "router", force=True, track=in_silence)
    return folder / "router"


def test_a_budget_on_the_price_is_met_where_sizes_are_unknown(priced: Path) -> None:
    evaluation = json.loads((priced / "evaluation.json").read_text())
    assert evaluation["cost_unit"] == "price_per_million_tokens"
    (cheap,) = evaluation["by_budget"]
    assert cheap["cost_unit"] == "price_per_million_tokens"
    assert cheap["mean_active_params_b"] <= 0.15 * 1.1
    assert cheap["gain"] > 0.2


def test_sizes_and_prices_may_both_be_budgeted(tmp_path: Path) -> None:
    experts = [
        {"name": name, "active_params_b": size, "price_per_million_tokens": PRICES[name]}
        for name, size in SIZES.items()
    ]
    objectives = {"small": {"active_params_b": 0.0009}, "cheap": {"price_per_million_tokens": 0.15}}
    config = read_config(write_run(tmp_path, experts=experts, objectives=objectives))
    fit(config, tmp_path / "router", force=True, track=in_silence)
    manifest = artifacts.load(tmp_path / "router").manifest
    assert manifest.costs("small") == list(SIZES.values())
    assert manifest.costs("cheap") == list(PRICES.values())
    assert manifest.objectives["cheap"].expected_active_params_b <= 0.15
    assert manifest.objectives["small"].expected_active_params_b <= 0.0009


@given(st.floats(8.0, 69.0))
@example(float(np.nextafter(10.15, 0.0)))
def test_prompts_that_are_all_alike_meet_any_budget_one_after_the_other(budget: float) -> None:
    """A single multiplier would give all of them the one expert or the other."""
    prompts = 2000
    grounds = Grounds(
        categories=("any",),
        experts=("small", "big"),
        scores=np.array([[0.4, 0.7], [0.4, 0.7]]),
        rows=np.zeros(prompts, dtype=np.int64),
        expected=np.tile([0.4, 0.7], (prompts, 1)),
        weights=np.ones(prompts),
        factors=np.random.default_rng(0).uniform(1.0, 1.0 + SPREAD, prompts),
        total_params_b=np.array([7.0, 70.0]),
        limits=Limits(),
        soft=True,
    )
    costs = np.array([7.0, 70.0])
    entry = solve_objective("some", Budget(budget, "active_params_b"), costs, grounds)
    spent = costs[decided(entry, grounds, costs)].mean()
    assert 0.98 * budget <= spent <= budget * (1.0 + 1e-9)  # up to rounding


def test_lower_bounds_take_z_errors_off_and_the_largest_one_where_it_is_unknown() -> None:
    outcomes = np.array([[1.0, 0.0], [0.0, np.nan], [1.0, np.nan], [1.0, 1.0]])
    table = score_table(np.eye(2)[[0, 0, 0, 1]], outcomes, np.ones(4), shrinkage_prompts=1.0)
    bounded = lower_bounds(table, 0.5)
    assert bounded.scores[0, 0] == pytest.approx(table.scores[0, 0] - 0.5 * table.standard_errors[0, 0])
    assert bounded.scores[1] == pytest.approx(np.maximum(table.scores[1] - 0.25, 0.0))
    assert (lower_bounds(table, 0.0).scores == table.scores).all()
    assert (bounded.counts == table.counts).all()


def test_an_exchange_of_experts_keeps_to_its_limits_and_never_loses() -> None:
    generator = np.random.default_rng(0)
    values, sizes = generator.random((30, 12)), generator.uniform(1, 10, 12)
    start = np.array([0, 1])
    found = improved_set(values, sizes, 25.0, 4, start)
    assert len(found) <= 4
    assert sizes[found].sum() <= 25.0
    assert values[:, found].max(axis=1).sum() >= values[:, start].max(axis=1).sum()
