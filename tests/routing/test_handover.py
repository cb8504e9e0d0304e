"""When an answer that has begun is handed over: the decision by table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.certainty import WHOLE, CertaintyModel, Curve, Handover, Instead
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RankedExpert, RouteOptions, RoutingDecision
from coe_server.routing.handover import ANSWER_TOKENS, HandoverTerms, Judge
from coe_server.routing.manifest import CurveEntry, HandoverEntry, InsteadEntry, ObjectiveEntry
from coe_server.routing.router import Router
from tests.routing.small_artifact import BEST, FOREIGN, SIZES, TEXTS, everywhere, objective, small_artifact
from tests.routing.test_own_routes import PLAIN, made

HERE = Availability("device", 0.0)
PRESENT = dict.fromkeys(("first", "second", "third"), HERE)
MODEL = CertaintyModel((Curve(4, -3.0, 1.5, 0.0, -3.0, 1.5), Curve(WHOLE, -3.0, 1.5, 0.0, -3.0, 1.5)))
CURVES = [
    CurveEntry(tokens=tokens, intercept=-3.0, certainty=1.5, score=0.0, alone_intercept=-3.0, alone_certainty=1.5)
    for tokens in (2, 4, 8, WHOLE)
]
SAVED = {"weights": "0"}  # an artifact has a version after it was saved
EARNED = HandoverEntry(tokens=4, margin=0.05, share=0.3, gain=0.1, gain_ci95=(0.05, 0.15), shipped=True)


def ranked(name: str, score: float | None, price: float = 0.0, **changes: object) -> RankedExpert:
    value = None if score is None else score - price
    return RankedExpert(name, score, 1.0, value, "device", 0.0, None)._replace(**changes)


def decided(*ranking: RankedExpert) -> RoutingDecision:
    base = router().route(Conversation.of_prompt(TEXTS["french"]), RouteOptions(), everywhere())
    return replace(base, expert=ranking[0].expert, ranking=ranking)


def judge(margin: float = 0.05, wasted: float = 0.0, score_per_second: float = 0.01, **overall: float) -> Judge:
    return Judge(MODEL, Handover(4, margin), 0.8, wasted, score_per_second, overall, 0.3)


FIRST, SECOND, THIRD = ranked("first", 0.8), ranked("second", 0.6), ranked("third", 0.5)
FAR = Availability("disk", 30.0)
TABLE = {
    "the second is expected to do better": (0.4, (FIRST, SECOND, THIRD), PRESENT, "second"),
    "it is better by no more than the margin": (0.56, (FIRST, SECOND, THIRD), PRESENT, None),
    "the first is sure": (0.9, (FIRST, SECOND, THIRD), PRESENT, None),
    "its wait costs more than it gains": (0.4, (FIRST, SECOND), PRESENT | {"second": FAR}, None),
    "the wait is worth it": (0.2, (FIRST, SECOND), PRESENT | {"second": FAR}, "second"),
    "a nearer one is better, wait included": (0.4, (FIRST, SECOND, THIRD), PRESENT | {"second": FAR}, "third"),
    "it has failed by now": (0.4, (FIRST, SECOND), PRESENT | {"second": Availability("disk", 0.0, "failed")}, None),
    "it is not served by now": (0.4, (FIRST, SECOND), {"first": HERE}, None),
    "it cannot take the request": (0.1, (FIRST, ranked("second", 0.6, excluded="cannot see images")), PRESENT, None),
    "it may be too small for the request": (0.1, (FIRST, ranked("second", 0.6, doubt="holds 9 tokens")), PRESENT, None),
    "its cost takes the gain": (0.4, (FIRST, ranked("second", 0.6, price=0.2)), PRESENT, None),
    "the rest of the first one's answer costs as much": (
        *(0.4, (ranked("first", 0.8, price=0.2), ranked("second", 0.6, price=0.2))),
        *(PRESENT, "second"),
    ),
    "nothing else can answer": (0.0, (FIRST,), PRESENT, None),
    "without ratings an even chance is expected": (
        0.3,
        (ranked("first", None), ranked("second", None)),
        PRESENT,
        "second",
    ),
}


@pytest.mark.parametrize(("certainty", "ranking", "now", "taken_by"), TABLE.values(), ids=TABLE.keys())
def test_the_expert_that_takes_over(
    certainty: float, ranking: tuple[RankedExpert, ...], now: dict[str, Availability], taken_by: str | None
) -> None:
    found = judge().successor(decided(*ranking), certainty, now, math.inf)
    assert (found and found.expert) == taken_by
    if found is not None:
        assert (found.reason, found.ranking[0].expert) == ("handed_over", taken_by)
        assert found.handovers[-1][:3] == ("first", taken_by, certainty)


def test_an_expert_that_comes_after_the_deadline_does_not_take_over() -> None:
    now = PRESENT | {"second": Availability("host", 0.5)}
    assert judge().successor(decided(FIRST, SECOND), 0.1, now, 0.4) is None
    assert judge().successor(decided(FIRST, SECOND), 0.1, now, 0.6) is not None


def test_the_mean_score_is_expected_of_an_expert_that_the_router_does_not_score() -> None:
    ranking = (ranked("first", None), ranked("second", None), ranked("third", None))
    found = judge(second=0.2, third=0.7).successor(decided(*ranking), 0.3, PRESENT, math.inf)
    assert found is not None
    assert (found.expert, found.handovers[-1].expected) == ("third", 0.7)


def test_where_the_router_says_nothing_the_expert_that_knows_what_the_first_lacks_takes_over() -> None:
    knows = {"second": Instead(0.9, 0.1), "third": Instead(0.1, 0.7)}
    asked = replace(judge(), model=replace(MODEL, instead=knows))
    decision = decided(FIRST, SECOND, THIRD)
    assert asked.successor(decision, 0.0, PRESENT, math.inf).expert == "second"
    found = replace(asked, expected=None).successor(decision, 0.0, PRESENT, math.inf)
    assert (found.expert, found.handovers[-1].expected) == ("third", 0.7)
    sure_of_its_own = replace(asked, expected=None, judged=frozenset({"third"}))
    assert sure_of_its_own.successor(decision, 0.0, PRESENT, math.inf).handovers[-1].expected == 0.5


def test_an_answer_goes_back_only_to_an_expert_that_was_surer_even_if_the_margin_is_negative() -> None:
    back = replace(judge(margin=-0.4), judged=frozenset({"first"}))
    for was_sure, goes_back in ((0.4, False), (0.5, False), (0.6, True)):
        decision = decided(ranked("second", 0.6), ranked("first", was_sure))
        found = back.successor(decision, 0.5, PRESENT, math.inf)
        assert (found is not None) == goes_back
        assert back.may_hand_over(decision)  # the second one may be less sure than that
    forward = replace(judge(margin=-0.4), judged=frozenset({"first"}))
    found = forward.successor(decided(ranked("second", 0.6), ranked("first", 0.4), THIRD), 0.6, PRESENT, math.inf)
    assert found is not None
    assert found.expert == "third"


@given(
    st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    st.floats(-1.0, 1.0),
    st.integers(1, 6),
    st.booleans(),
)
def test_a_chain_ends_within_its_handovers_and_asks_a_judged_expert_again_only_if_it_was_surer(
    certainties: list[float], margin: float, at_most: int, is_known: bool
) -> None:
    one = router(HandoverTerms(at_most=at_most, margin=margin))
    said, now = dict(zip(SIZES, certainties, strict=True)), dict.fromkeys(SIZES, HERE)
    text = TEXTS["french"] if is_known else FOREIGN
    asked, decision = judged(one, text)
    passed = [decision.expert]
    while asked is not None:
        after = asked.successor(decision, said[decision.expert], now, math.inf)
        if after is None:
            break
        if after.expert in passed:
            assert said[after.expert] > said[decision.expert]
        decision = after
        passed.append(decision.expert)
        asked = one.judges.of(decision, Conversation.of_prompt(text), RouteOptions(), True)
    assert len(passed) - 1 == len(decision.handovers) <= at_most
    assert all(passed.count(name) <= 2 for name in passed)
    assert len(set(passed[:-1])) == len(passed[:-1])  # only the last one may be there a second time


def test_where_the_router_says_nothing_the_next_expert_is_judged_by_all_that_were_unsure_before_it() -> None:
    first, second = ({"third": Instead(0.0, 0.2)}, {"third": Instead(0.0, 0.9)})
    asked = replace(judge(), expected=None, model=replace(MODEL, instead=second), judged=frozenset({"first"}))
    decision = decided(ranked("second", None), ranked("first", 0.1), ranked("third", None))
    assert asked.successor(decision, 0.0, PRESENT, math.inf).handovers[-1].expected == 0.9
    before = replace(asked, before=((replace(MODEL, instead=first), 0.0),))
    assert before.successor(decision, 0.0, PRESENT, math.inf).handovers[-1].expected == 0.2


def test_a_start_that_was_spent_makes_staying_cheaper() -> None:
    ranking = (ranked("first", 0.8, price=0.2), ranked("second", 0.6, price=0.2))
    assert judge(wasted=0.0).successor(decided(*ranking), 0.4, PRESENT, math.inf) is not None
    assert judge(wasted=1.0).successor(decided(*ranking), 0.4, PRESENT, math.inf) is None


@given(st.floats(0.0, 1.0), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=2), st.floats(0.0, 1.0))
def test_the_first_expert_keeps_its_place_by_what_its_tokens_say(
    certainty: float, others: list[float], wasted: float
) -> None:
    ranking = [
        ranked(name, score) for name, score in zip(("second", "third"), sorted(others, reverse=True), strict=False)
    ]
    decision = decided(FIRST, *ranking, ranked("fourth", 0.9, excluded="not served here"))
    found = judge(wasted=wasted).successor(decision, certainty, PRESENT, math.inf)
    if found is None:
        assert max(others) - certainty <= 0.05 + 1e-9
        return
    rest = [one for one in found.ranking[1:] if one.excluded is None]
    assert sorted(one.expert for one in found.ranking) == sorted(one.expert for one in decision.ranking)
    assert [one.value for one in rest] == sorted((one.value for one in rest), reverse=True)
    assert next(one for one in rest if one.expert == "first").expected_score == certainty
    assert found.ranking[-1].expert == "fourth"


@given(st.floats(0.0, 1.0), st.floats(-0.5, 0.5), st.floats(0.0, 1.0), st.floats(0.0, 0.5), st.floats(0.0, 1.0))
def test_an_answer_is_held_only_if_some_certainty_would_hand_it_over(
    score: float, margin: float, wasted: float, price: float, certainty: float
) -> None:
    asked, decision = judge(margin, wasted), decided(ranked("first", 0.8, price), ranked("second", score, price))
    if asked.successor(decision, certainty, PRESENT, math.inf) is not None:
        assert asked.may_hand_over(decision)
        assert asked.likely_successor(decision) == "second"


def router(terms: HandoverTerms | None = None, entry: HandoverEntry | None = EARNED, **changes: object) -> Router:
    quality: ObjectiveEntry = objective(BEST, handover=entry)
    artifact = small_artifact(
        checksums=SAVED, objectives={"quality": quality}, certainty=dict.fromkeys(SIZES, CURVES), **changes
    )
    return Router(artifact, handover=terms or HandoverTerms())


def judged(one: Router, text: str = TEXTS["french"], stream: bool = True, tokens: int = 0, **options: Any):
    conversation, asked = replace(Conversation.of_prompt(text), answer_tokens=tokens), RouteOptions(**options)
    decision = one.route(conversation, asked, everywhere())
    return one.judges.of(decision, conversation, asked, stream), decision


def test_the_artifacts_tokens_and_margin_are_used_unless_the_configuration_says_otherwise() -> None:
    assert judged(router())[0].rule == Handover(4, 0.05)
    assert judged(router(HandoverTerms(tokens=2, margin=0.2)))[0].rule == Handover(2, 0.2)
    assert judged(router(HandoverTerms(margin=0.2), entry=None))[0].rule == Handover(8, 0.2)
    assert judged(router(HandoverTerms(tokens=7)))[0].rule == Handover(4, 0.05)  # no more than is calibrated is held


def test_all_tokens_are_those_of_an_answer_that_is_not_streamed() -> None:
    one = router(HandoverTerms(tokens=WHOLE))
    assert judged(one, stream=False)[0].rule.tokens == WHOLE
    assert judged(one, stream=True)[0].rule.tokens == 8


def test_the_wasted_share_is_that_of_an_answer_as_long_as_the_caller_allows() -> None:
    assert judged(router())[0].wasted == 4 / ANSWER_TOKENS
    assert judged(router(), tokens=500)[0].wasted == 4 / ANSWER_TOKENS
    assert judged(router(), tokens=8)[0].wasted == 0.5
    assert judged(router(), stream=False)[0].wasted == 1.0


def test_outside_the_gate_the_router_says_nothing_of_this_prompt() -> None:
    judge, decision = judged(router(HandoverTerms(margin=-1.0)), FOREIGN)
    assert decision.reason == "out_of_domain"
    assert judge.expected is None
    assert judged(router())[0].expected == pytest.approx(0.9, abs=0.1)


REFUSED = HandoverEntry(
    tokens=4, margin=0.05, share=0.0, gain=0.0, gain_ci95=(-0.1, 0.1), shipped=False, refusal="it gains nothing"
)


def test_what_is_not_judged() -> None:
    assert judged(router(), expert="linguist")[0] is None
    assert judged(router(entry=REFUSED))[0] is None
    assert judged(router(entry=None))[0] is None
    assert judged(Router(router().artifact))[0] is None  # not configured
    assert judged(router(pins={"french": "linguist"}))[0] is None
    assert judged(router(), allow=frozenset({"linguist"}))[0] is None  # there is no other
    unknown = Router(
        small_artifact(checksums=SAVED, objectives={"quality": objective(BEST, handover=EARNED)}),
        handover=HandoverTerms(),
    )
    assert judged(unknown)[0] is None  # without a certainty model


def test_why_nothing_is_handed_over_is_told() -> None:
    assert router().judges.refusal("quality") is None
    assert router(HandoverTerms(margin=0.1), entry=REFUSED).judges.refusal("quality") is None
    assert Router(router().artifact).judges.refusal("quality") is None  # not configured
    assert router(entry=REFUSED).judges.refusal("quality") == "it gains nothing"
    assert router(entry=None).judges.refusal("quality") == "training has not measured it"
    unknown = Router(small_artifact(checksums=SAVED), handover=HandoverTerms(margin=0.1))
    assert str(unknown.judges.refusal("quality")).startswith("the artifact says nothing of experts' certainty")


def test_an_objective_with_terms_of_its_own_is_judged_by_them() -> None:
    own = {"quality": HandoverTerms(tokens=2, margin=0.2), "cheap": HandoverTerms(at_most=0)}
    assert judged(router(HandoverTerms(objectives=own)))[0].rule == Handover(2, 0.2)
    off = router(HandoverTerms(objectives={"quality": HandoverTerms(at_most=0)}))
    assert judged(off)[0] is None
    assert off.judges.refusal("quality") is None  # as configured


def test_a_request_is_handed_over_at_most_as_often_as_allowed_and_no_expert_is_judged_twice() -> None:
    for at_most in (1, 2):
        one = router(HandoverTerms(at_most=at_most))
        asked, decision = judged(one)
        now = dict.fromkeys(SIZES, HERE)
        passed = [decision.expert]
        while asked is not None:
            decision = asked.successor(decision, 0.0, now, math.inf)
            passed.append(decision.expert)
            asked = one.judges.of(decision, Conversation.of_prompt(TEXTS["french"]), RouteOptions(), True)
        assert passed == ["linguist", "big", "coder"][: at_most + 1]
        assert len(decision.handovers) == at_most


def test_the_cost_of_a_start_counts_in_the_objectives_budget() -> None:
    entry = objective(BEST, active_params_b=50.0, handover=EARNED)
    artifact = small_artifact(checksums=SAVED, objectives={"quality": entry}, certainty=dict.fromkeys(SIZES, CURVES))
    one = Router(artifact, budget_window=100, handover=HandoverTerms())
    asked, decision = judged(one, stream=False)
    after = asked.successor(decision, 0.0, dict.fromkeys(SIZES, HERE), math.inf)
    with one.spending(decision):  # its answer is given up
        pass
    with one.spending(after) as answered:
        answered()
    assert one.price("quality").mean == SIZES["linguist"] + SIZES["big"]


LOOP = "a python function with a loop"
EVERYWHERE = ("coder", "lawyer", "paralegal", "generalist")


def drafted(folder: Path, **match: Any) -> Router:
    """A router from examples, whose experts' first tokens were calibrated since."""
    content = {**PLAIN, "routes": {**PLAIN["routes"], "code": {**PLAIN["routes"]["code"], **match}}}
    artifact = made(folder, content).artifact
    changes = {
        "certainty": dict.fromkeys(EVERYWHERE, CURVES),
        "instead": {"coder": {"lawyer": InsteadEntry(where_right=0.1, where_wrong=0.8)}},
    }
    return Router(replace(artifact, manifest=artifact.manifest.model_copy(update=changes)), handover=TERMS)


TERMS = HandoverTerms(margin=0.05)


def routed(one: Router, here: dict[str, Availability], **options: Any) -> tuple[Judge | None, RoutingDecision]:
    conversation, asked = Conversation.of_prompt(LOOP), RouteOptions(**options)
    decision = one.route(conversation, asked, here)
    return one.judges.of(decision, conversation, asked, True), decision


def test_of_routes_without_scores_any_able_expert_may_take_over_by_what_it_scores_where_the_first_is_wrong(
    tmp_path: Path,
) -> None:
    here = dict.fromkeys(EVERYWHERE, HERE)
    asked, decision = routed(drafted(tmp_path), here)
    assert (decision.expert, asked.expected) == ("coder", None)
    found = asked.successor(decision, 0.0, here, math.inf)
    assert (found.expert, found.handovers[-1].expected, found.ranking[0].excluded) == ("lawyer", 0.8, None)
    assert {one.expert for one in found.ranking if one.excluded is None} == {"lawyer", "coder", "generalist"}
    assert asked.successor(decision, 0.9, here, math.inf) is None


def test_an_expert_beyond_the_route_must_be_allowed_and_not_on_another_server(tmp_path: Path) -> None:
    here, one = dict.fromkeys(EVERYWHERE, HERE), drafted(tmp_path)
    asked, decision = routed(one, here, allow=frozenset({"coder", "generalist"}))
    assert asked.successor(decision, 0.0, here, math.inf).expert == "generalist"
    away = here | {"lawyer": Availability("remote", 0.0)}
    asked, decision = routed(one, away)
    assert asked.successor(decision, 0.0, away, math.inf).expert != "lawyer"


def test_a_route_that_a_rule_chose_keeps_to_its_experts(tmp_path: Path) -> None:
    here = dict.fromkeys(EVERYWHERE, HERE)
    asked, decision = routed(drafted(tmp_path, match={"words": ["python"]}), here)
    assert decision.expert == "coder"
    assert asked.successor(decision, 0.0, here, math.inf).expert == "generalist"  # the default's
