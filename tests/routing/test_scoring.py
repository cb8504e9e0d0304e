from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing import artifact as artifacts
from coe_server.routing.classifier import normalised_entropy
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import RouteOptions
from coe_server.routing.manifest import Thresholds
from coe_server.routing.router import Router
from tests.routing.small_artifact import TEXTS, everywhere, held_out, small_artifact

CLEAR = Conversation.of_prompt(TEXTS["code"])
MIXED = Conversation.of_prompt(" ".join(TEXTS.values()))


def router(folder: Path, **thresholds: float) -> Router:
    limits = Thresholds(**{"gate": 0.0, "min_confidence": 0.0, **thresholds})
    artifacts.save(small_artifact(thresholds=limits), held_out(), None, folder / "router")
    return Router.load(folder / "router")


def test_a_prompt_between_all_categories_goes_to_general(tmp_path: Path) -> None:
    unsure = router(tmp_path, max_entropy=0.5)
    mixed = unsure.route(MIXED, RouteOptions(), everywhere())
    clear = unsure.route(CLEAR, RouteOptions(), everywhere())
    assert (mixed.reason, mixed.category) == ("general", "general")
    assert (clear.reason, clear.category) == ("mapped", "code")


def test_without_a_limit_nothing_is_too_uncertain(tmp_path: Path) -> None:
    assert router(tmp_path).route(MIXED, RouteOptions(), everywhere()).reason == "mapped"


def test_a_caller_may_ask_for_more_confidence(tmp_path: Path) -> None:
    decided = router(tmp_path).route(MIXED, RouteOptions(min_confidence=0.9), everywhere())
    assert decided.reason == "general"


@given(st.integers(2, 20), st.integers(0, 1000))
def test_entropy_is_between_certain_and_even(categories: int, seed: int) -> None:
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(categories), 5)
    found = normalised_entropy(probabilities)
    assert ((found >= 0.0) & (found <= 1.0 + 1e-12)).all()
    assert normalised_entropy(np.eye(categories)) == pytest.approx(np.zeros(categories))
    assert normalised_entropy(np.full(categories, 1.0 / categories)) == pytest.approx(1.0)
