from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coe_server.routing.conversation import Conversation
from router_training.data.dataset import Dataset
from router_training.evaluation import gains as details
from router_training.evaluation.gains import Judged, curve_keys
from router_training.evaluation.robustness import PERTURBATIONS, reworded, robustness


def dataset(scores: list[list[float]], weights: list[float]) -> Dataset:
    n = len(scores)
    return Dataset(
        tuple(f"p{i}" for i in range(n)),
        tuple(Conversation.of_prompt(f"Number {i} is here. What is it?") for i in range(n)),
        ("x", "y"),
        np.arange(n) % 2,
        np.array([""] * n),
        np.array(weights),
        ("small", "large"),
        np.array(scores),
        np.arange(n),
    )


def test_flips_that_cost_score_are_told_apart() -> None:
    """Only capitals fool this router: three of four prompts flip, one to a worse expert, one to a better one."""
    asked = dataset([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], [2.0, 1.0, 1.0, 1.0])

    def route(changed: Dataset) -> np.ndarray:
        shouted = "NUMBER" in changed.conversations[0].turns[0].text
        return np.array([1, 1, 1, 0]) if shouted else np.zeros(4, dtype=np.int64)

    report = robustness(route, asked, np.random.default_rng(0))
    assert list(report["robustness"]) == ["n_prompts", *PERTURBATIONS]
    shouting = report["robustness"]["case"]
    assert shouting["flips"] == pytest.approx(4 / 5)
    assert shouting["harmful_flips"] == pytest.approx(2 / 5)
    assert shouting["score_change"] == pytest.approx((-2 + 1) / 5)
    assert report["robustness"]["typos"] == {"flips": 0.0, "harmful_flips": 0.0, "score_change": 0.0}
    assert report["flip_rate"] == pytest.approx(4 / 5 / len(PERTURBATIONS))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("The sky is red. It rains. What is it?", "What's it? The sky is red. It rains."),
        ("If it rains, do not go", "don't go, If it rains"),
        ("Go!", "Tell me this: Go!"),
    ],
)
def test_rewording_keeps_the_words(before: str, after: str) -> None:
    assert reworded(before, np.random.default_rng(0)) == after


def test_two_experts_have_routellms_numbers_and_three_have_none() -> None:
    judged = Judged(dataset([[1.0, 1.0], [0.0, 1.0]], [1.0, 1.0]), np.array([1.0, 10.0]))
    two = curve_keys(judged, judged.outcomes)
    assert two["apgr"] == pytest.approx(0.75)
    assert two["cpt"] == {"50": pytest.approx(0.25), "80": pytest.approx(0.4)}
    assert two["delta_aiq"] == pytest.approx(two["aiq"] - 0.75)
    three = replace(judged.dataset, experts=("a", "b", "c"), scores=np.eye(3)[:2])
    assert curve_keys(Judged(three, np.array([1.0, 2.0, 3.0])), np.eye(3)[:2])["apgr"] is None


def test_the_confusion_matrix_has_the_share_of_each_true_category() -> None:
    table = details.confusion(np.array([0, 0, 1, -1]), np.array([0, 1, 1, 0]), np.array([1.0, 3.0, 1.0, 9.0]), 3)
    assert table == [[0.25, 0.75, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_reliability_bins_hold_all_of_the_weight() -> None:
    bins = details.reliability(np.array([0.5] * 15 + [0.9] * 15), np.array([0.0, 1.0, 1.0] * 10), np.ones(30))
    assert sum(one["share"] for one in bins) == pytest.approx(1.0)
    assert [one["confidence"] for one in bins] == sorted(one["confidence"] for one in bins)


def test_the_worst_prompts_are_those_that_promised_most_and_had_a_better_expert() -> None:
    judged = Judged(dataset([[0.0, 1.0], [0.0, 0.0], [0.0, 0.5]], [1.0] * 3), np.array([1.0, 2.0]))
    expected = np.array([[0.6, 0.1], [0.99, 0.1], [0.9, 0.2]])
    worst = details.worst_prompts(judged, np.zeros(3, dtype=np.int64), expected, np.eye(2)[[0, 1, 0]], ["x", "y"])
    assert [row["prompt_id"] for row in worst] == ["p2", "p0"]
    assert worst[1]["better_expert"] == "large"
