"""A trained router in service: users' ratings make it better (export, `map`, `fit`), and drift is seen."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.cli import app as coe
from coe_server.errors import DatasetError
from coe_server.http.traffic import Traffic, reference_of
from coe_server.journal.entries import Entry, Feedback
from coe_server.journal.store import Store
from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.cli import app as coe_train
from router_training.config import read_config
from router_training.feedback import with_feedback
from router_training.fit import fit
from tests.training.recorded import SIZES, WORDS, outcomes, prompts, write_jsonl, write_run

NEARBY = dict.fromkeys(SIZES, Availability("disk", 1.0))
runner = CliRunner()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(read_config(write_run(folder)), folder / "router", force=True, track=in_silence)
    return folder / "router"


def served(folder: Path, router: Router, opinion: dict[str, float], per_category: int = 100) -> Path:
    """A server's configuration and the log of its life: routed prompts, rated by their category, texts kept."""
    config = folder / "serve.yaml"
    experts = [{"name": name, "engine": "simulated"} for name in SIZES]
    config.write_text(yaml.safe_dump({"experts": experts, "state_directory": "state"}))
    store = Store(folder / "state" / "journal.sqlite3")
    draw = random.Random(3)
    with store.file.transaction():
        for category, words in WORDS.items():
            for number in range(per_category):
                text = " ".join(draw.choices(words, k=4))
                decision = router.route(Conversation.of_prompt(text), RouteOptions(), NEARBY)
                store.add(Entry(float(number), decision, [{"role": "user", "content": text}]))
                store.took(decision.decision_id, {"prompt": 4, "completion": number})
                if number % 10:  # one answer in ten gets no rating
                    store.rate(Feedback(decision.decision_id, opinion.get(category, 0.95), None, 0.0))
    store.close()
    return config


def export(config: Path, out: Path) -> str:
    result = runner.invoke(coe, ["journal", "export", str(config), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return result.output


def expert_for(folder: Path, words: str) -> str:
    return Router.load(folder).route(Conversation.of_prompt(words), RouteOptions(), NEARBY).expert


def test_a_category_that_users_are_unhappy_with_changes_hands_and_no_other_does(trained: Path, tmp_path: Path) -> None:
    assert expert_for(trained, "bonjour merci chien") == "fr"
    config = served(tmp_path, Router.load(trained), {"french": 0.0})
    assert "400 decisions, 360 of them rated" in export(config, tmp_path / "out")
    feedback = str(tmp_path / "out" / "feedback.jsonl")
    assert json.loads(Path(feedback).read_text().splitlines()[7])["tokens"] == {"prompt": 4, "completion": 7}
    result = runner.invoke(coe_train, ["map", str(trained), "--feedback", feedback, "--out", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    assert expert_for(tmp_path / "new", "bonjour merci chien") == "gen"
    assert expert_for(tmp_path / "new", "lambda def sort") == expert_for(trained, "lambda def sort")
    before, after = (artifacts.load(folder).manifest.score["french"]["fr"] for folder in (trained, tmp_path / "new"))
    assert after.score < before.score - 0.3
    assert after.prompts > before.prompts
    evaluation = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert not evaluation["re_solved"]["measured"]


def test_ratings_of_another_routers_categories_are_refused_with_a_sentence(trained: Path, tmp_path: Path) -> None:
    line: dict[str, Any] = {"expert": "fr", "inside": True, "probabilities": {"chess": 1.0}, "expected_score": 0.5}
    (tmp_path / "f.jsonl").write_text(json.dumps({**line, "score": 1.0}) + "\n")
    words = ["map", str(trained), "--feedback", str(tmp_path / "f.jsonl"), "--out", str(tmp_path / "new")]
    result = runner.invoke(coe_train, words)
    assert result.exit_code == 2
    assert "none of its 1 ratings" in " ".join(result.output.split())
    assert not (tmp_path / "new").exists()


def test_a_rating_that_is_no_share_is_refused_by_its_row(trained: Path, tmp_path: Path) -> None:
    categories = artifacts.load(trained).manifest.categories
    line = {"expert": "fr", "probabilities": dict.fromkeys(categories, 0.25), "expected_score": 0.5, "score": 5}
    (tmp_path / "f.jsonl").write_text(json.dumps(line) + "\n")
    words = ["map", str(trained), "--feedback", str(tmp_path / "f.jsonl"), "--out", str(tmp_path / "new")]
    result = runner.invoke(coe_train, words)
    assert result.exit_code == 2
    assert "row 1: 5 is not in [0, 1]" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"expert": ["fr"]}, "none of its 1 ratings has an expert"),
        ({"score": 10**400}, "row 1: 1000"),
        ({"expected_score": -(10**400)}, "row 1: -1000"),
        ({"expected_score": float("inf")}, "row 1: inf is not a number"),
        ({"inside": "false"}, "row 1: inside must be true or false, not 'false'"),
        ({"score": None}, "has no ratings: no line has a score"),
    ],
)
def test_a_line_that_no_export_writes_is_refused(
    trained: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "f.jsonl").write_text(json.dumps({**rating(trained), **changes}) + "\n")
    with pytest.raises(DatasetError) as caught:
        with_feedback(artifacts.load(trained), tmp_path / "f.jsonl")
    assert sentence in str(caught.value)


def test_map_says_how_many_ratings_it_used(trained: Path, tmp_path: Path) -> None:
    lines = [rating(trained), *[{**rating(trained), "expert": "gone"}] * 9]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    words = ["map", str(trained), "--feedback", str(tmp_path / "f.jsonl"), "--out", str(tmp_path / "new")]
    result = runner.invoke(coe_train, words)
    assert result.exit_code == 0, result.output
    assert "ratings: 1 of 10 used; the others are of experts or categories" in result.output


def rating(trained: Path) -> dict[str, Any]:
    categories = artifacts.load(trained).manifest.categories
    line = {"expert": "fr", "inside": True, "expected_score": 0.5, "score": 1.0}
    return {**line, "probabilities": dict.fromkeys(categories, 1 / len(categories))}


def test_an_expected_score_a_hair_over_1_and_a_rating_of_nothing_are_read(trained: Path, tmp_path: Path) -> None:
    categories = artifacts.load(trained).manifest.categories
    line = {"expert": "fr", "probabilities": dict.fromkeys(categories, 0.25), "expected_score": 1.0005, "score": 0.0}
    lines = [line, {**line, "expected_score": -1e-17}, {**line, "score": float("nan")}, {**line, "score": None}]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    rated = with_feedback(artifacts.load(trained), tmp_path / "f.jsonl")
    assert (rated.used, rated.given) == (2, 2)


def test_what_a_router_expects_of_an_expert_that_is_always_right_comes_back_as_feedback(tmp_path: Path) -> None:
    """Corrections expect more than 1 of it, and the log says 1: from a decision to its rating and into the scores."""
    folder = tmp_path / "always"
    folder.mkdir()
    recipe = write_run(folder, per_category=60)
    rows = prompts(60)
    always = [{**row, "score": 1.0} if row["expert"] == "gen" else row for row in outcomes(rows)]
    write_jsonl(folder / "outcomes.jsonl", always)
    fit(read_config(recipe), folder / "router", force=True, track=in_silence)
    router = Router.load(folder / "router")
    expected = [
        one.expected_score
        for row in rows
        for one in router.route(Conversation.of_prompt(row["prompt"]), RouteOptions(), NEARBY).ranking
    ]
    assert all(score is not None and 0.0 <= score <= 1.0 for score in expected)
    assert 1.0 in expected
    export(served(folder, router, {}, per_category=20), folder / "out")
    words = ["map", str(folder / "router"), "--feedback", str(folder / "out/feedback.jsonl"), "--out"]
    result = runner.invoke(coe_train, [*words, str(folder / "new")])
    assert result.exit_code == 0, result.output


def test_prompts_that_hold_half_a_surrogate_pair_come_out_of_the_log_and_are_trained_on(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, objectives={"quality": {}})
    texts = [{**row, "prompt": row["prompt"] + " half \ud83d \0 a\rb \u202e"} for row in prompts(60)]
    write_jsonl(tmp_path / "prompts.jsonl", texts)
    fit(read_config(recipe), tmp_path / "router", force=True, track=in_silence)
    router, store = Router.load(tmp_path / "router"), Store(tmp_path / "state" / "journal.sqlite3")
    with store.file.transaction():
        for row in texts:
            decision = router.route(Conversation.of_prompt(row["prompt"]), RouteOptions(), NEARBY)
            store.add(Entry(0.0, decision, [{"role": "user", "content": row["prompt"]}]))
            store.rate(Feedback(decision.decision_id, 1.0, "half \udfff", 0.0))
    store.close()
    config = tmp_path / "serve.yaml"
    experts = [{"name": name, "engine": "simulated"} for name in SIZES]
    config.write_text(yaml.safe_dump({"experts": experts, "state_directory": "state"}))
    assert "240 prompts, 240 outcomes" in export(config, tmp_path / "out")
    data = yaml.safe_load(recipe.read_text())
    data["data"] = {
        "prompts": ["prompts.jsonl", "out/prompts.jsonl"],
        "outcomes": ["outcomes.jsonl", "out/outcomes.jsonl"],
    }
    recipe.write_text(yaml.safe_dump(data))
    again = fit(read_config(recipe), tmp_path / "again", force=True, track=in_silence)
    assert artifacts.load(again.folder).manifest.prompts == 480
    for command in ("report", "probe"):
        result = runner.invoke(coe_train, [command, str(again.folder)])
        assert result.exit_code == 0, result.output
    words = ["evaluate", str(again.folder), "--prompts", str(tmp_path / "prompts.jsonl"), "--json"]
    words += [str(tmp_path / "numbers.json"), "--outcomes", str(tmp_path / "outcomes.jsonl")]
    result = runner.invoke(coe_train, words)
    assert result.exit_code == 0, result.output


def test_kept_prompts_and_their_ratings_are_data_to_train_on(trained: Path, tmp_path: Path) -> None:
    config = served(tmp_path, Router.load(trained), {}, per_category=20)
    assert "80 prompts, 72 outcomes" in export(config, tmp_path / "out")
    written = [json.loads(line) for line in (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()]
    assert {row["output_tokens"] for row in written} == set(range(20)) - {0, 10}
    recipe = write_run(tmp_path)
    data = yaml.safe_load(recipe.read_text())
    data["data"] = {
        "prompts": ["prompts.jsonl", "out/prompts.jsonl"],
        "outcomes": ["outcomes.jsonl", "out/outcomes.jsonl"],
    }
    recipe.write_text(yaml.safe_dump(data))
    fit(read_config(recipe), tmp_path / "again", force=True, track=in_silence)
    before, after = (artifacts.load(folder).manifest for folder in (trained, tmp_path / "again"))
    assert after.prompts > before.prompts
    assert expert_for(tmp_path / "again", "bonjour merci chien") == "fr"


def test_a_trained_router_sees_other_topics_come_and_leaves_steady_ones_alone(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router.load(trained)
    reference = reference_of(artifacts.read_held_out(trained), router.artifact.manifest.categories)
    assert reference is not None
    traffic, draw = Traffic(reference, router.version), random.Random(5)

    def ask(words: list[str]) -> None:
        text = " ".join(draw.choices(words, k=4)) + f" {draw.randint(0, 99)}"
        traffic.see(router.route(Conversation.of_prompt(text), RouteOptions(), NEARBY))

    for _ in range(1500):
        ask(WORDS[draw.choice(list(WORDS))])
    assert not any(traffic.drift.left_band.values())
    assert caplog.text == ""
    asked = 0
    while not traffic.drift.left_band["categories"]:
        ask(WORDS["french"])
        asked += 1
    assert asked <= 500
    assert "drift: categories left the band of its training data" in caplog.text
    for _ in range(500):
        ask(WORDS[draw.choice(list(WORDS))])
    asked = 0
    while not traffic.drift.left_band["out_of_domain"]:
        ask(["zzqx", "wwvk", "jjyy", "qqpp"])
        asked += 1
    assert asked <= 500
    assert "categories is back in the band" in caplog.text


def test_without_a_log_the_export_says_how_to_have_one(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump({"experts": [{"name": "a", "engine": "simulated"}]}))
    result = runner.invoke(coe, ["journal", "export", str(config), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "log.decisions: true writes one" in " ".join(result.output.split())
