from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from coe_server.config.types import MODALITIES, Modality
from coe_server.errors import ExpertUnavailable, NoCapableExpert, RequestError, UnknownModel
from coe_server.routing import artifact as artifacts
from coe_server.routing.budget import SPREAD
from coe_server.routing.by_name import NamedRouter
from coe_server.routing.capabilities import Capabilities, known_modalities
from coe_server.routing.classifier import Corrections
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, Kept, RouteOptions, RoutingDecision
from coe_server.routing.features import Turn
from coe_server.routing.manifest import Thresholds
from coe_server.routing.router import Router
from coe_server.routing.tokens import TokenCount
from tests.routing.small_artifact import (
    BEST,
    FOREIGN,
    OVERALL,
    SIZES,
    SMALL,
    TEXTS,
    everywhere,
    held_out,
    objective,
    small_artifact,
)

DEVICE = Availability("device", 0.0)


@pytest.fixture
def router(folder: Path) -> Router:
    return Router.load(folder)


def made(tmp_path: Path, tolerance: float = 0.0, **changes: Any) -> Router:
    artifacts.save(small_artifact(**changes), held_out(), None, tmp_path / "made")
    return Router.load(tmp_path / "made", residency_tolerance=tolerance)


def ask(router: Router, text: str, **options: Any) -> RoutingDecision:
    return router.route(Conversation.of_prompt(text), RouteOptions(**options), everywhere())


@pytest.mark.parametrize("category", TEXTS)
def test_a_prompt_goes_to_the_best_expert_of_its_category(router: Router, category: str) -> None:
    decision = ask(router, TEXTS[category])
    assert (decision.category, decision.reason) == (category, "mapped")
    assert decision.expert == BEST[category]
    assert decision.gate.inside is True


def test_the_expected_score_mixes_the_categories_by_their_probability(router: Router) -> None:
    decision = ask(router, TEXTS["code"])
    p = decision.probabilities
    assert sum(p.values()) == pytest.approx(1.0)
    by_name = {one.expert: one for one in decision.ranking}
    assert by_name["coder"].expected_score == pytest.approx(0.8 * p["code"] + 0.1 * p["french"] + 0.4 * p["maths"])


def test_a_budget_prices_active_parameters_and_says_when_it_changed_the_choice(router: Router) -> None:
    cheap = ask(router, TEXTS["code"], objective="cheap")
    assert (cheap.expert, cheap.reason) == ("coder", "mapped")  # as the stored multiplier maps it
    assert ask(router, TEXTS["french"], objective="cheap").reason == "mapped"
    budget = ask(router, TEXTS["code"], objective="cheap").budget
    assert (budget.target, budget.mean) == (10.0, None)
    assert 0.01 <= budget.multiplier <= 0.01 * (1.0 + SPREAD)


def test_the_reason_is_budget_where_the_live_multiplier_changed_what_the_stored_one_chooses(folder: Path) -> None:
    router = Router.load(folder, budget_window=10)
    assert ask(router, TEXTS["code"], objective="cheap").reason == "mapped"
    for _ in range(3000):  # of 9 B each where 10 B may be spent: the multiplier falls
        with router.spending(ask(router, TEXTS["french"], objective="cheap")) as answered:
            answered()
    decision = ask(router, TEXTS["code"], objective="cheap")
    assert (decision.expert, decision.reason) == ("big", "budget")
    assert ask(router, TEXTS["french"], objective="cheap").reason == "mapped"


def test_the_reason_is_mixed_where_another_than_the_stored_mapping_is_chosen(tmp_path: Path) -> None:
    other = {**BEST, "code": "coder"}
    router = made(tmp_path, objectives={"quality": objective(other)})
    decision = ask(router, TEXTS["code"])
    assert (decision.category, decision.expert, decision.reason) == ("code", "big", "mixed")
    assert ask(router, TEXTS["maths"]).reason == "mapped"
    french = ask(router, TEXTS["french"], allow=frozenset({"coder", "big"}))
    assert (french.expert, french.reason) == ("big", "mixed")


def test_outside_the_gate_the_overall_means_decide(router: Router) -> None:
    decision = ask(router, FOREIGN)
    assert (decision.category, decision.reason, decision.gate.inside) == ("general", "out_of_domain", False)
    assert {one.expert: one.expected_score for one in decision.ranking} == OVERALL
    assert decision.expert == "big"


def test_near_the_gate_the_expected_scores_lean_towards_the_overall_means(tmp_path: Path) -> None:
    text = TEXTS["code"] + " " + FOREIGN
    near = made(tmp_path, thresholds=Thresholds(gate=0.0, min_confidence=0.0))
    similarity = ask(near, text).gate.similarity
    assert similarity is not None
    trusted = {one.expert: one.expected_score for one in ask(near, text).ranking}
    half = made(tmp_path, thresholds=Thresholds(gate=0.0, full_trust=2.0 * similarity, min_confidence=0.0))
    decision = ask(half, text)
    assert (decision.reason, decision.gate.inside) == ("mapped", True)
    for one in decision.ranking:
        soft = trusted[one.expert]
        assert soft is not None
        assert one.expected_score == pytest.approx((soft + OVERALL[one.expert]) / 2)


def test_a_prompts_own_words_correct_what_its_category_says(tmp_path: Path) -> None:
    plain = small_artifact(corrections=True)
    coefficients = np.zeros((len(plain.features.kept), len(SIZES)), dtype=np.float32)
    vector = plain.features.vector(Conversation.of_prompt(TEXTS["maths"]).turns)
    coefficients[vector.columns[0]] = np.array([0.9, 0.0, -0.9], dtype=np.float32) / vector.weights[0]
    artifacts.save(replace(plain, corrections=Corrections(coefficients)), held_out(), None, tmp_path / "corrected")
    router = Router.load(tmp_path / "corrected")
    assert ask(router, TEXTS["maths"]).expert == "coder"
    assert ask(router, TEXTS["french"]).expert == "linguist"
    assert {one.expert: one.expected_score for one in ask(router, FOREIGN).ranking} == OVERALL


def test_an_unsure_classifier_leaves_the_choice_to_the_overall_means(router: Router) -> None:
    mixed = TEXTS["french"] + " " + TEXTS["maths"]
    assert ask(router, mixed).reason == "mapped"
    unsure = ask(router, mixed, min_confidence=0.99)
    assert (unsure.category, unsure.reason) == ("general", "general")
    assert unsure.confidence is not None
    assert unsure.confidence < 0.99


def test_the_artifact_may_hold_a_least_confidence_of_its_own(tmp_path: Path) -> None:
    router = made(tmp_path, thresholds=Thresholds(gate=0.2, min_confidence=1.0))
    assert ask(router, TEXTS["french"]).reason == "general"
    assert ask(router, TEXTS["french"], min_confidence=0.0).reason == "mapped"


def test_an_expert_asked_for_by_name_is_taken_unread(router: Router) -> None:
    decision = ask(router, TEXTS["french"], expert="coder")
    assert (decision.expert, decision.reason, decision.category) == ("coder", "requested", None)
    assert [one.expert for one in decision.ranking] == ["coder"]


def test_an_expert_the_router_was_not_trained_on_can_be_asked_for(router: Router) -> None:
    conversation, options = Conversation.of_prompt("hello"), RouteOptions(expert="newcomer")
    decision = router.route(conversation, options, everywhere(newcomer=DEVICE))
    assert (decision.expert, decision.ranking[0].expected_score) == ("newcomer", None)


def test_an_unknown_expert_is_refused_with_a_list(router: Router) -> None:
    with pytest.raises(UnknownModel, match="no expert 'nobody'; known are big, coder, linguist"):
        ask(router, "hello", expert="nobody")


def test_an_unknown_objective_is_refused_with_a_list(router: Router) -> None:
    with pytest.raises(UnknownModel, match="no objective 'best'; this router has quality, cheap, unearned"):
        ask(router, "hello", objective="best")


def test_an_objective_that_was_not_shipped_is_refused(router: Router) -> None:
    assert router.objectives == ("quality", "cheap")
    with pytest.raises(RequestError, match="'unearned' is not served: it lost"):
        ask(router, "hello", objective="unearned")


@pytest.mark.parametrize(
    ("options", "expert", "sentence"),
    [
        ({"allow": frozenset({"coder", "linguist"})}, "big", "not in the request's allow list"),
        ({"max_active_params_b": 9.0}, "big", "70 B active parameters are over the request's cap of 9 B"),
    ],
)
def test_an_excluded_expert_stays_in_the_ranking_with_its_reason(
    router: Router, options: dict[str, Any], expert: str, sentence: str
) -> None:
    decision = ask(router, TEXTS["code"], **options)
    assert decision.expert == "coder"
    assert {one.expert: one.excluded for one in decision.ranking}[expert] == sentence
    assert decision.ranking[-1].expert == expert


def test_an_expert_that_cannot_be_had_is_passed_over(router: Router) -> None:
    failed = everywhere(big=Availability("disk", 10.0, "cooling down after a failed start"))
    decision = router.route(Conversation.of_prompt(TEXTS["code"]), RouteOptions(), failed)
    assert decision.expert == "coder"
    assert decision.ranking[-1].excluded == "cooling down after a failed start"


def test_if_no_expert_is_available_the_error_says_to_retry(router: Router) -> None:
    gone = dict.fromkeys(("coder", "linguist", "big"), Availability("disk", 1.0, "draining"))
    with pytest.raises(ExpertUnavailable, match="coder: draining"):
        router.route(Conversation.of_prompt("hello"), RouteOptions(), gone)


@pytest.mark.parametrize(
    ("conversation", "sentence"),
    [
        (Conversation.of_prompt("word " * 2000), "holds 1000 tokens and the request needs at least about 1580"),
        (Conversation((Turn("x"),), answer_tokens=1001), "holds 1000 tokens and the request needs at least about 1001"),
        (Conversation((Turn("x"),), modalities=frozenset({"image"})), "cannot see images"),
    ],
)
def test_a_request_that_no_expert_can_take_names_the_limit(
    router: Router, conversation: Conversation, sentence: str
) -> None:
    with pytest.raises(NoCapableExpert, match=sentence):
        router.route(conversation, RouteOptions(), everywhere())


def test_the_server_knows_capabilities_better_than_the_artifact(folder: Path) -> None:
    able = Router.load(folder, capabilities={"coder": Capabilities(modalities={"image": True})})
    seeing = Conversation((Turn(TEXTS["french"]),), modalities=frozenset({"image"}))
    assert able.route(seeing, RouteOptions(), everywhere()).expert == "coder"


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_request_goes_to_an_expert_that_takes_all_its_parts(tmp_path: Path, modality: Modality) -> None:
    experts = [
        one.model_copy(update={"vision": modality == "image", "modalities": [modality]}) if one.name == "coder" else one
        for one in small_artifact().manifest.experts
    ]
    said = {"linguist": Capabilities(modalities=known_modalities(None, [])), "big": Capabilities()}
    artifacts.save(small_artifact(experts=experts), held_out(), None, tmp_path / "made")
    router = Router.load(tmp_path / "made", capabilities=said)
    conversation = Conversation((Turn(TEXTS["french"]),), modalities=frozenset({modality}))
    excluded = {one.expert: one.excluded for one in router.route(conversation, RouteOptions(), everywhere()).ranking}
    word = {"image": "see images", "audio": "take audio", "video": "take video", "file": "take files"}[modality]
    assert excluded["coder"] is None
    assert excluded["linguist"] == f"cannot {word}"
    assert excluded["big"] == ("cannot see images" if modality == "image" else None)  # unknown is not held against it


def test_every_part_must_be_taken_by_the_same_expert(router: Router) -> None:
    said = {"coder": known_modalities(None, ["image"]), "linguist": known_modalities(None, ["audio"])}
    able = Router(router.artifact, capabilities={name: Capabilities(modalities=one) for name, one in said.items()})
    both = Conversation((Turn("x"),), modalities=frozenset({"image", "audio"}))
    with pytest.raises(NoCapableExpert, match="coder: cannot take audio") as caught:
        able.route(both, RouteOptions(), everywhere())
    assert "linguist: cannot see images" in str(caught.value)


LONG = Conversation((Turn(TEXTS["french"]),), TokenCount(900, 1500))  # the artifact's experts hold 1000
ROOMY = {"big": Capabilities(context_tokens=8000)}


def test_an_expert_that_likely_has_the_room_comes_first(folder: Path) -> None:
    decision = Router.load(folder, capabilities=ROOMY).route(LONG, RouteOptions(), everywhere())
    assert [one.expert for one in decision.ranking] == ["big", "linguist", "coder"]
    assert decision.expert == "big"
    assert all(one.excluded is None for one in decision.ranking)
    sentence = "holds 1000 tokens and the request needs about 1500"
    assert [one.doubt for one in decision.ranking] == [None, sentence, sentence]


def test_where_no_expert_likely_has_the_room_the_best_is_asked(router: Router) -> None:
    decision = router.route(LONG, RouteOptions(), everywhere())
    assert (decision.expert, decision.reason) == ("linguist", "mapped")
    assert decision.has_another
    gone = {**everywhere(), "linguist": Availability("disk", 0.0, "draining")}
    decision = router.route(LONG, RouteOptions(), gone)
    assert (decision.expert, decision.ranking[-1].excluded, decision.ranking[-1].doubt) == ("big", "draining", None)


@pytest.mark.parametrize("changes", [{"pins": {"french": "linguist"}}, {"mode": "hard"}])
def test_a_pin_or_a_mapping_to_an_expert_that_likely_lacks_the_room_gives_way(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    router = made(tmp_path, **changes)
    assert router.route(LONG, RouteOptions(), everywhere()).expert == "linguist"
    roomy = Router(router.artifact, capabilities=ROOMY)
    assert roomy.route(LONG, RouteOptions(), everywhere()).expert == "big"


def test_a_conversation_that_outgrows_its_expert_moves_to_one_with_room(router: Router) -> None:
    options = RouteOptions(kept=Kept("linguist", "french"))
    roomy = Router(router.artifact, capabilities=ROOMY)
    assert router.route(LONG, options, everywhere()).reason == "sticky"
    decision = roomy.route(LONG, options, everywhere())
    assert (decision.expert, decision.reason) == ("big", "mixed")


def test_a_resident_expert_that_likely_lacks_the_room_is_left_alone(tmp_path: Path) -> None:
    artifact = made(tmp_path).artifact
    router = Router(artifact, residency_tolerance=1.0, capabilities=ROOMY)
    assert router.route(LONG, RouteOptions(), everywhere(linguist=DEVICE)).expert == "big"


def test_an_expert_asked_for_by_name_counts_the_tokens_itself(router: Router) -> None:
    conversation = Conversation((Turn("x"),), TokenCount(5000, 9000), answer_tokens=100_000)
    decision = router.route(conversation, RouteOptions(expert="coder"), everywhere())
    assert (decision.expert, decision.ranking[0].doubt) == ("coder", None)


HERE = {"coder": DEVICE, "linguist": DEVICE}


@pytest.mark.parametrize(
    ("options", "conversation"),
    [
        ({}, Conversation((Turn("x"),), TokenCount(5000, 9000))),
        ({}, Conversation((Turn("x"),), modalities=frozenset({"image"}))),
        ({"allow": frozenset({"big"})}, Conversation((Turn("x"),))),
        ({"max_active_params_b": 1.0}, Conversation((Turn("x"),))),
        ({"expert": "big"}, Conversation((Turn("x"),))),
    ],
)
def test_an_expert_that_is_not_served_is_no_reason_to_come_back(
    router: Router, options: dict[str, Any], conversation: Conversation
) -> None:
    roomy = Router(router.artifact, capabilities={"big": Capabilities(100_000, {"image": True})})
    with pytest.raises(NoCapableExpert) as caught:
        roomy.route(conversation, RouteOptions(**options), HERE)
    of_big_alone = not {"expert", "allow"}.isdisjoint(options)
    assert ("not served here" in str(caught.value)) == of_big_alone
    assert ("coder: " in str(caught.value)) == (not of_big_alone)


def test_what_the_request_may_not_use_is_in_no_refusal(router: Router) -> None:
    options = RouteOptions(allow=frozenset({"linguist"}), max_active_params_b=1e-9)
    with pytest.raises(NoCapableExpert, match=r"\(linguist: .* over the request's cap") as caught:
        router.route(Conversation((Turn("x"),)), options, HERE)
    assert "coder" not in str(caught.value)
    with pytest.raises(NoCapableExpert, match="knows none of the experts that it may use"):
        router.route(Conversation((Turn("x"),)), RouteOptions(allow=frozenset({"elsewhere"})), HERE)


def test_an_expert_that_could_take_it_once_it_is_back_is_a_reason_to_come_back(router: Router) -> None:
    roomy = Router(router.artifact, capabilities={"linguist": Capabilities(100_000)})
    here = {"coder": DEVICE, "linguist": Availability("disk", 0.0, "draining")}
    with pytest.raises(ExpertUnavailable) as caught:
        roomy.route(Conversation((Turn("x"),), TokenCount(5000, 9000)), RouteOptions(), here)
    assert str(caught.value).endswith("(linguist: draining)")


@pytest.mark.parametrize(
    ("here", "error"), [({}, NoCapableExpert), ({"a": DEVICE._replace(unavailable="draining")}, ExpertUnavailable)]
)
def test_without_an_artifact_the_same_holds(here: dict[str, Availability], error: type[Exception]) -> None:
    with pytest.raises(error):
        NamedRouter(["a"]).route(Conversation((Turn("x"),)), RouteOptions(expert="a"), here)


def test_a_resident_expert_within_the_tolerance_is_taken_and_the_trade_is_told(tmp_path: Path) -> None:
    router = made(tmp_path, tolerance=0.15)
    here = everywhere(coder=DEVICE)
    decision = router.route(Conversation.of_prompt(TEXTS["code"]), RouteOptions(), here)
    scores = {one.expert: one.expected_score or 0.0 for one in decision.ranking}
    assert (decision.expert, decision.reason) == ("coder", "resident")
    assert decision.resident.score_lost == pytest.approx(scores["big"] - scores["coder"])
    assert 0.0 < decision.resident.score_lost <= 0.15
    assert decision.resident.wait_saved_seconds == 10.0


@pytest.mark.parametrize(
    "where",
    [
        {"coder": Availability("device", 30.0), "big": Availability("host", 2.0)},
        {"coder": DEVICE, "big": Availability("remote", 0.0)},
    ],
)
def test_a_resident_expert_that_saves_no_waiting_is_left_alone(tmp_path: Path, where: dict[str, Availability]) -> None:
    router = made(tmp_path, tolerance=0.15)
    decision = router.route(Conversation.of_prompt(TEXTS["code"]), RouteOptions(), everywhere(**where))
    assert (decision.expert, decision.reason) == ("big", "mapped")
    assert (decision.resident.score_lost, decision.resident.wait_saved_seconds) == (0.0, 0.0)


def test_a_resident_expert_beyond_the_tolerance_is_left_alone(tmp_path: Path) -> None:
    here = everywhere(coder=DEVICE)
    for tolerance, text in ((0.15, TEXTS["french"]), (0.0, TEXTS["code"])):
        router = made(tmp_path, tolerance=tolerance)
        decision = router.route(Conversation.of_prompt(text), RouteOptions(), here)
        assert (decision.reason, decision.resident.score_lost) == ("mapped", 0.0)
        assert decision.expert != "coder"


def test_a_changed_pair_in_the_mapping_file_is_obeyed(folder: Path) -> None:
    path = folder / "mapping.json"
    mapping = json.loads(path.read_text())
    mapping["quality"]["french"] = "coder"
    path.write_text(json.dumps(mapping))
    before, after = Router(small_loaded(folder.parent)), Router.load(folder)
    assert ask(before, TEXTS["french"]).expert == "linguist"
    assert (ask(after, TEXTS["french"]).expert, ask(after, TEXTS["french"]).reason) == ("coder", "route")
    assert ask(after, TEXTS["french"]).ranking[0].expert == "coder"
    assert ask(after, TEXTS["french"], objective="cheap").expert == "linguist"
    assert before.version != after.version


def test_a_pin_that_cannot_take_the_request_gives_way(tmp_path: Path) -> None:
    router = made(tmp_path, pins={"french": "coder"})
    assert ask(router, TEXTS["french"]).expert == "coder"
    assert ask(router, TEXTS["french"], allow=frozenset({"linguist", "big"})).expert == "linguist"


def test_a_pin_of_general_decides_outside_the_gate(tmp_path: Path) -> None:
    router = made(tmp_path, pins={"general": "coder"})
    assert (ask(router, FOREIGN).expert, ask(router, FOREIGN).reason) == ("coder", "route")


def test_a_ban_holds_for_its_category_only(tmp_path: Path) -> None:
    router = made(tmp_path, bans={"french": ["linguist"]})
    assert ask(router, TEXTS["french"]).expert == "big"
    assert ask(router, TEXTS["french"]).ranking[-1].excluded == "banned for category french"
    assert all(one.excluded is None for one in ask(router, TEXTS["code"]).ranking)


def test_an_objective_uses_its_own_experts_only(tmp_path: Path) -> None:
    router = made(tmp_path, objectives={"quality": objective(SMALL, experts=["coder", "linguist"])})
    decision = ask(router, TEXTS["maths"])
    assert decision.expert == "coder"
    assert decision.ranking[-1].excluded == "not used under objective quality"


def test_hard_mode_follows_the_mapping(tmp_path: Path) -> None:
    mapping = {"code": "linguist", "french": "coder", "maths": "linguist", "general": "coder"}
    router = made(tmp_path, mode="hard", objectives={"quality": objective(mapping, fallback="coder")})
    assert {ask(router, text).expert for name, text in TEXTS.items() if name != "french"} == {"linguist"}
    assert ask(router, TEXTS["french"]).expert == "coder"
    assert (ask(router, FOREIGN).expert, ask(router, FOREIGN).reason) == ("coder", "out_of_domain")
    assert ask(router, TEXTS["french"], allow=frozenset({"big"})).expert == "big"


def test_ties_go_to_the_smaller_expert(tmp_path: Path) -> None:
    overall = {name: small_artifact().manifest.overall["big"] for name in OVERALL}
    assert [one.expert for one in ask(made(tmp_path, overall=overall), FOREIGN).ranking] == ["coder", "linguist", "big"]


def test_an_empty_prompt_is_outside_the_gate(router: Router) -> None:
    assert ask(router, "").reason == "out_of_domain"


def test_the_decision_as_json_has_the_agreed_keys(router: Router) -> None:
    plain = json.loads(json.dumps(ask(router, TEXTS["code"]).as_json()))
    assert ", ".join(plain) == (
        "decision_id, router_version, objective, category, confidence, probabilities, expert, reason, ranking, gate,"
        " budget, resident, routing_ms, exploration, shadow, costs, handovers"
    )
    assert ", ".join(plain["ranking"][0]) == (
        "expert, expected_score, active_params_b, value, residency, predicted_wait_seconds, excluded, doubt"
    )
    assert list(plain["gate"]) == ["similarity", "threshold", "inside"]
    assert list(plain["budget"]) == ["target", "mean", "multiplier"]
    assert list(plain["resident"]) == ["score_lost", "wait_saved_seconds"]


def test_threads_share_a_router_and_agree(router: Router) -> None:
    results: list[tuple[str, str]] = []

    def work() -> None:
        results.extend((name, ask(router, text).expert) for name, text in TEXTS.items() for _ in range(20))

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {(name, BEST[name]) for name in TEXTS}
    assert len(results) == 240


def small_loaded(tmp_path: Path) -> artifacts.Artifact:
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "unchanged")
    return artifacts.load(tmp_path / "unchanged")


def test_what_an_engine_really_holds_counts_where_it_is_less_than_was_said(folder: Path) -> None:
    said = {name: Capabilities(context_tokens=8000) for name in ("coder", "linguist", "big")}
    router = Router.load(folder, capabilities=said)
    fits = Conversation((Turn(TEXTS["french"]),), TokenCount(900, 950))
    assert router.route(fits, RouteOptions(), everywhere()).expert == "linguist"
    told = everywhere(linguist=Availability("disk", 10.0, longest_tokens=512))
    decision = router.route(fits, RouteOptions(), told)
    assert decision.expert != "linguist"
    (reason,) = (one.excluded for one in decision.ranking if one.expert == "linguist")
    assert reason == "holds 512 tokens and the request needs at least about 900"
    more = everywhere(linguist=Availability("disk", 10.0, longest_tokens=50_000))
    assert router.route(fits, RouteOptions(), more).expert == "linguist"
    longer = Conversation((Turn(TEXTS["french"]),), TokenCount(9000, 9000))
    with pytest.raises(NoCapableExpert, match="linguist: holds 8000 tokens"):
        router.route(longer, RouteOptions(), more)


def test_a_routed_answer_states_its_cost_and_what_it_saves_against_the_best_single_expert(router: Router) -> None:
    decision = ask(router, TEXTS["french"])
    best = max(OVERALL, key=OVERALL.__getitem__)
    assert (decision.cost, decision.saved) == (SIZES["linguist"], SIZES[best] - SIZES["linguist"])
    fallback = decision.without_first("failed")
    assert fallback.cost == SIZES[fallback.expert]
    assert decision.as_json()["costs"] == {
        "unit": "active_params_b",
        "best_single": best,
        "cost": decision.cost,
        "saved": decision.saved,
    }
    named = ask(router, TEXTS["code"], expert="coder")
    assert (named.cost, named.saved, named.as_json()["costs"]) == (None, None, None)
