from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import Conversation, Sessions, read_messages, session_key
from coe_server.routing.decision import Availability, RouteOptions, RoutingDecision
from coe_server.routing.exploration import ALWAYS_SHARE, SETTLED_SHARE, Learned, nothing_learned
from coe_server.routing.router import Router
from tests.routing.small_artifact import SIZES, TEXTS, everywhere, held_out, small_artifact
from tests.routing.test_own_routes import CODE, LAW, made

CHANCES = np.random.default_rng(0)


def router(folder: Path, mode: Any = 0.3, tolerance: float = 0.0, **changes: Any) -> Router:
    artifacts.save(small_artifact(**changes), held_out(), None, folder / "drawn")
    return Router.load(folder / "drawn", tolerance) if mode == "off" else _exploring(folder / "drawn", tolerance, mode)


def _exploring(folder: Path, tolerance: float, mode: Any) -> Router:
    return Router(artifacts.load(folder), tolerance, exploration=mode)


def ask(
    one: Router, text: str, draw: float | None, here: dict[str, Availability] | None = None, **options: Any
) -> RoutingDecision:
    return one.route(Conversation.of_prompt(text), RouteOptions(draw=draw, **options), everywhere() | (here or {}))


def test_a_share_of_conversations_is_drawn_among_all_and_the_distribution_is_logged(tmp_path: Path) -> None:
    one = router(tmp_path)
    usual = ask(one, TEXTS["code"], None)
    assert usual.exploration is None
    drawn = [ask(one, TEXTS["code"], float(draw)) for draw in CHANCES.random(600)]
    told = drawn[0].exploration
    assert told is not None
    assert told.probabilities == pytest.approx({"coder": 0.1, "linguist": 0.1, "big": 0.8})
    for name, chance in told.probabilities.items():
        assert np.mean([one.expert == name for one in drawn]) == pytest.approx(chance, abs=0.06)
    for decision in drawn:
        assert (decision.reason == "explored") == (decision.expert != usual.expert)
        assert decision.exploration is not None
        assert decision.exploration.conversation == decision.decision_id
        assert (decision.exploration.drawn, decision.exploration.usual) == (decision.expert, "big")


def test_nothing_is_drawn_when_exploration_is_off_or_the_expert_is_named(tmp_path: Path) -> None:
    assert ask(router(tmp_path, "off"), TEXTS["code"], 0.99).exploration is None
    assert ask(router(tmp_path / "b"), TEXTS["code"], 0.99, expert="coder").exploration is None


def test_an_excluded_expert_is_never_drawn(tmp_path: Path) -> None:
    one = router(tmp_path)
    for draw in np.linspace(0.0, 0.999, 50):
        found = ask(one, TEXTS["code"], float(draw), max_active_params_b=10.0)
        assert found.expert in {"coder", "linguist"}
        assert found.exploration is not None
        assert set(found.exploration.probabilities) == {"coder", "linguist"}


def test_a_pinned_category_is_not_drawn(tmp_path: Path) -> None:
    one = router(tmp_path, pins={"code": "linguist"})
    found = ask(one, TEXTS["code"], 0.999)
    assert (found.expert, found.reason, found.exploration) == ("linguist", "route", None)


def test_the_distribution_includes_residency(tmp_path: Path) -> None:
    one = router(tmp_path, tolerance=0.05)
    cold = dict.fromkeys(SIZES, Availability("disk", 10.0))
    found = ask(one, TEXTS["code"], 0.3, cold | {"coder": Availability("device", 0.0)})
    assert found.exploration is not None
    assert (found.expert, found.reason, found.exploration.usual) == ("coder", "resident", "coder")
    assert found.exploration.probabilities == pytest.approx({"big": 0.0, "coder": 0.9, "linguist": 0.1})


def test_learning_draws_by_the_chance_to_be_best_until_the_category_is_settled(tmp_path: Path) -> None:
    one = router(tmp_path, "learn")
    before = ask(one, TEXTS["code"], 0.0).exploration
    assert before is not None
    assert 0.2 < before.probabilities["coder"] < 0.8  # 0.80 against 0.82
    assert before.probabilities["linguist"] == pytest.approx(ALWAYS_SHARE / 3, abs=1e-6)  # 0.20 is out of reach
    one.learned = replace(one.learned, settled=frozenset({"code"}))
    after = ask(one, TEXTS["code"], 0.0).exploration
    assert after is not None
    assert after.probabilities["big"] == pytest.approx(1.0 - SETTLED_SHARE * 2 / 3, abs=1e-6)


def test_what_was_learned_moves_the_choice_and_the_version(tmp_path: Path) -> None:
    one = router(tmp_path, "off")
    assert (ask(one, TEXTS["code"], None).expert, one.version) == ("big", one.artifact.version)
    one.learned = shifted(one.learned, "code", "coder", 0.05)
    found = ask(one, TEXTS["code"], None)
    assert (found.expert, found.reason, found.router_version) == ("coder", "mixed", f"{one.artifact.version}+1")
    assert ask(one, TEXTS["french"], None).expert == "linguist"


def shifted(known: Learned, category: str, expert: str, by: float) -> Learned:
    shifts = known.shifts.copy()
    shifts[known.rows[category], known.columns[expert]] = by
    return replace(known, shifts=shifts, steps=known.steps + 1)


def test_a_route_of_several_experts_learns_which_is_best(tmp_path: Path) -> None:
    content = {
        "routes": {"code": {"experts": ["a", "b"], "examples": CODE}, "law": {"expert": "lawyer", "examples": LAW}},
        "default": "a",
    }
    one = made(tmp_path, content)
    one.exploration = "learn"
    away = dict.fromkeys(one.expert_names, Availability("disk", 1.0))

    def asked(text: str, draw: float | None) -> RoutingDecision:
        return one.route(Conversation.of_prompt(text), RouteOptions(draw=draw), away)

    assert asked(CODE[0], None).expert == "a"
    assert {asked(CODE[0], draw).expert for draw in (0.1, 0.9)} == {"a", "b"}
    assert asked(LAW[0], 0.9).exploration is None  # one expert: nothing to draw
    one.learned = shifted(one.learned, "code", "b", 0.05)
    found = asked(CODE[0], None)
    assert (found.expert, found.ranking[0].expected_score) == ("b", pytest.approx(0.55))


def test_ratings_concern_the_experts_whose_scores_can_change_an_answer(tmp_path: Path) -> None:
    routes = {
        "code": {"experts": ["a", "b"], "examples": CODE},
        "law": {"expert": "lawyer", "examples": LAW},
        "loose": {"expert": "a", "match": {"words": "loose"}, "tolerance": 0.1},
    }
    rated = {"a": {"ratings": {"loose": 0.5}}}
    found = made(tmp_path, {"routes": routes, "default": "generalist", "experts": rated})
    assert {name: set(experts) for name, experts in found.rated_experts.items()} == {
        "code": {"a", "b"},
        "law": set(),
        "loose": {"a", "b", "lawyer", "generalist"},
        "default": set(),
    }
    trained = router(tmp_path / "trained")
    assert {*trained.rated_experts} == {*trained.learned.rows}
    assert all(set(experts) == set(trained.expert_names) for experts in trained.rated_experts.values())


def test_later_turns_stay_with_the_drawn_expert_and_repeat_its_draw(tmp_path: Path) -> None:
    one, sessions = router(tmp_path), Sessions()
    first = ask(one, TEXTS["code"], 0.95)
    assert first.reason == "explored"
    later = read_messages(
        [
            {"role": "user", "content": TEXTS["code"]},
            {"role": "assistant", "content": "done"},
            {"role": "user", "content": "thanks"},
        ]
    )
    key = session_key(Conversation.of_prompt(TEXTS["code"]), RouteOptions(session="s"), None)
    sessions.remember(key, first)
    kept = sessions.last(key, later, RouteOptions(session="s"))
    found = one.route(later, RouteOptions(session="s", kept=kept), everywhere())
    assert (found.expert, found.reason, found.exploration) == (first.expert, "sticky", first.exploration)


def test_draws_before_the_first_rating_are_the_same_after_a_restart() -> None:
    one, other = nothing_learned(("a", "b"), ("x", "y")), nothing_learned(("a", "b"), ("x", "y"))
    assert np.array_equal(one.draws, other.draws)
