"""Handing over in a simulated world: what it gains at equal cost, when it is earned, and how good the margin is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from coe_server.routing.certainty import WHOLE, CertaintyModel, Handover, certainty
from coe_server.routing.decision import RankedExpert
from coe_server.routing.handover import Judge
from router_training.classifier.certainty import (
    auroc,
    certainties,
    curve_entries,
    fitted_curve,
    fitted_curves,
    fitted_models,
    probabilities,
)
from router_training.data.split import Fold
from router_training.evaluation.handover import (
    NEVER,
    above_the_router,
    best_handover,
    by_rule,
    cross_played,
    gain_of,
    judged,
    played,
    without_handover,
)
from router_training.evaluation.handover_evidence import HandoverEvidence, refusal_of
from router_training.evaluation.metrics import Bootstrap
from tests.training.evaluation.certain_world import EXPERTS, LENGTH, stage

PAYS = (0.65, 0.60, 0.1)
REFUSES = (0.92, 0.15, 0.1)
BOOTSTRAP = Bootstrap(200, 0)


def folds(prompts: int, count: int = 5) -> list[Fold]:
    number = np.arange(prompts) % count
    return [Fold(np.flatnonzero(number != one), np.flatnonzero(number == one)) for one in range(count)]


def evidence(chances: tuple[float, float, float], prompts: int = 2000) -> HandoverEvidence:
    world = stage(prompts, chances)
    return HandoverEvidence(gain_of(world, cross_played(world, folds(prompts)), BOOTSTRAP), None)


def test_weak_certainty_ships_where_another_expert_is_nearly_as_good() -> None:
    found = evidence(PAYS)
    assert refusal_of(found, 0.0) is None
    assert found.inside.gain > 0.02
    assert 0.1 < found.inside.share < 0.6


def test_weak_certainty_is_refused_where_the_others_are_much_worse() -> None:
    found = evidence(REFUSES)
    assert "is not certain: the lower bound is" in (refusal_of(found, 0.0) or "")
    assert found.inside.gain > -0.01


def test_a_loss_on_groups_left_out_refuses_what_gains_on_folds() -> None:
    found = evidence(PAYS)
    worse = replace(found.inside, gain=-0.02)
    assert "on groups left out of training it changes the score by -2.00 points" in (
        refusal_of(replace(found, outside=worse), 0.01) or ""
    )
    assert refusal_of(replace(found, outside=worse), 0.03) is None


@pytest.mark.parametrize("chances", [PAYS, REFUSES, (0.8, 0.7, 0.2)])
def test_the_margin_found_is_within_half_a_point_of_the_best_in_hindsight(chances: tuple[float, float, float]) -> None:
    seen, unseen = stage(4000, chances, seed=1), stage(10_000, chances, seed=2)
    models = fitted_models(seen.dataset, seen.expected)
    rule = best_handover(seen, models)
    rest = without_handover(unseen).mean(axis=0)

    def gain(margin: float) -> float:
        one = by_rule(unseen, models, replace(rule, margin=margin))
        return above_the_router(np.concatenate(([one.scores.mean(), one.spent.mean()], rest)))

    hindsight = max(gain(margin) for margin in np.linspace(-0.6, 0.6, 61))
    assert gain(rule.margin) >= max(hindsight, 0.0) - 0.005


def test_wasted_tokens_are_counted() -> None:
    world = stage(100, PAYS, costs=(2.0, 2.0, 2.0))
    judgement = judged(world, fitted_models(world.dataset, world.expected), 4)
    assert played(world, judgement, NEVER, 4).spent.mean() == pytest.approx(2.0)
    assert played(world, judgement, -NEVER, 4).spent.mean() == pytest.approx(2.0 * (1.0 + 4 / LENGTH))
    assert played(world, judgement, -NEVER, 0).spent.mean() == pytest.approx(4.0)
    taken = world.dataset.scores[np.arange(100), np.argsort(-world.allowed, axis=1)[:, 1]]
    assert played(world, judgement, -NEVER, 4).scores.tolist() == taken.tolist()


@pytest.mark.parametrize("tokens", [4, 8, WHOLE])
def test_the_answer_that_stays_still_costs_its_rest_as_serving_counts_it(tokens: int) -> None:
    penalty, cost = 0.2, 2.0
    world = replace(stage(200, PAYS, costs=(cost, cost, cost)), penalty=np.full(200, penalty))
    models = fitted_models(world.dataset, world.expected)
    found = judged(world, models, tokens)
    wasted = tokens / LENGTH if tokens else 1.0
    for row in range(10):
        names = [EXPERTS[world.first[row]], EXPERTS[found.seconds[row]]]
        scores = [float(world.allowed[row, EXPERTS.index(name)]) for name in names]
        first, second = (
            RankedExpert(name, score, cost, score - penalty * cost, "device", 0.0, None)
            for name, score in zip(names, scores, strict=True)
        )
        serving = Judge(models[names[0]], Handover(tokens, 0.0), scores[0], wasted, 0.0, {}, 0.2)
        assert world.dataset.said is not None
        right = serving.certainty([float(world.dataset.said.of(tokens)[row, world.first[row]])] * 4)
        stays = right - penalty * cost * (1.0 - wasted)
        assert found.advantages[row] == pytest.approx(second.value - stays)
        decision = SimpleNamespace(ranking=(first, second))
        assert serving.may_hand_over(decision) == (second.value > -penalty * cost * (1.0 - wasted))


def test_dear_experts_are_compared_with_what_the_router_reaches_for_their_price() -> None:
    """Another expert is better and dearer, and certainty is noise: handing over is no more than mixing."""
    world = stage(3000, (0.6, 0.6, 0.6), strength=0.0, costs=(1.0, 3.0, 5.0))
    found = gain_of(world, cross_played(world, folds(3000)), BOOTSTRAP)
    assert found.low <= 0.0


def test_an_expert_without_log_probabilities_is_never_handed_over_from() -> None:
    world = stage(500, PAYS)
    said = world.dataset.said
    assert said is not None
    said.means[:, 0] = np.nan
    models = fitted_models(world.dataset, world.expected)
    assert set(models) == set(EXPERTS[1:])
    advantages = judged(world, models, 4).advantages
    assert np.isneginf(advantages[world.first == 0]).all()
    assert np.isfinite(advantages[world.first != 0]).all()


def test_where_nothing_is_gained_there_is_no_margin() -> None:
    world = stage(500, (0.6, 0.5, 0.4))
    others = np.arange(3) != world.first[:, np.newaxis]
    world.dataset.scores[others] = 0.0
    assert best_handover(world, fitted_models(world.dataset, world.expected)).margin == NEVER


def test_curves_give_the_probabilities_that_serving_computes() -> None:
    world = stage(400, PAYS)
    curve = fitted_curves(world.dataset, world.expected)["a"][2]
    means, expected = np.array([-3.0, -0.2, -1e-9, 0.0]), np.array([0.5, np.nan, 0.9, 1.1])
    ours = probabilities(curve, means, expected)
    model = CertaintyModel((curve,))
    for at, mean in enumerate(means):
        guess = None if np.isnan(expected[at]) else float(expected[at])
        assert model.probability([mean] * 4, guess, 4) == pytest.approx(ours[at])
    assert certainties(means).tolist() == pytest.approx([certainty(mean) for mean in means])


def test_a_curve_never_falls_even_if_the_data_do() -> None:
    means, scores = np.linspace(-3.0, 0.0, 100), np.linspace(1.0, 0.0, 100).round()
    curve = fitted_curve(4, means, np.full(100, np.nan), scores, np.ones(100))
    assert curve.alone_certainty == pytest.approx(0.0, abs=1e-6)
    assert probabilities(curve, means, np.full(100, np.nan)) == pytest.approx(np.full(100, 0.5), abs=0.02)


def test_separable_answers_have_a_finite_curve() -> None:
    means = np.concatenate((np.full(50, -2.0), np.full(50, -0.01)))
    curve = fitted_curve(4, means, np.full(100, np.nan), np.repeat([0.0, 1.0], 50), np.ones(100))
    low, high = probabilities(curve, np.array([-2.0, -0.01]), np.full(2, np.nan))
    assert 0.0 < low < 0.1
    assert 0.9 < high < 1.0


def test_the_report_of_an_expert_says_how_well_it_knows_itself() -> None:
    world = stage(4000, PAYS)
    entry = curve_entries(world.dataset, np.full(world.allowed.shape, np.nan), folds(4000))["a"][0]
    assert entry.auroc == pytest.approx(0.75, abs=0.03)
    assert entry.calibration_error is not None
    assert entry.calibration_error < 0.05


def test_an_auroc_counts_ties_as_half_and_needs_both_classes() -> None:
    right = np.array([True, False, True, False])
    assert auroc(np.array([0.9, 0.1, 0.5, 0.5]), right) == 0.875
    assert auroc(np.array([0.9, 0.1]), np.array([True, True])) is None


def test_where_the_router_says_nothing_the_expert_that_knows_what_the_first_lacks_takes_over() -> None:
    """`a` is right on half of all prompts; `c` has the higher mean, but `b` is right exactly where `a` is not."""
    world = stage(400, (0.5, 0.5, 0.5))
    scores, said = world.dataset.scores, world.dataset.said
    assert said is not None
    right = np.arange(400) % 2 == 0
    scores[:] = np.column_stack((right, ~right, np.arange(400) % 10 < 6))
    said.means[:] = np.where(scores == 1.0, -0.01, -3.0)[:, :, np.newaxis]
    overall = np.tile(scores.mean(axis=0), (400, 1))
    nothing = np.zeros(400, dtype=np.bool_)
    lost = replace(world, allowed=overall, first=np.zeros(400, dtype=np.int64), known=nothing)
    models = fitted_models(lost.dataset, lost.expected)
    one = by_rule(lost, models, Handover(4, 0.0))
    assert one.scores.mean() == 1.0
    assert one.handed.tolist() == (~right).tolist()
    assert models["a"].expected_instead("b", 0.0) == pytest.approx(1.0, abs=0.02)
    assert models["a"].expected_instead("a", 0.0) is None
