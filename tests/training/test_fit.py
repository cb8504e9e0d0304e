from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.features import Features, SparseVector
from coe_server.routing.router import Router
from router_training import Item, in_silence
from router_training.classifier.classifier import cross_fit, fit_step_one, prompt_folds
from router_training.classifier.features import basis_of, count_ngrams, weigh
from router_training.cli import app
from router_training.config import read_config
from router_training.data.dataset import read_dataset
from router_training.fit import fit
from tests.training.recorded import SIZES, SPECIALIST, outcomes, prompts, write_jsonl, write_run

KEYS = (
    "n_prompts, n_incomplete, router_version, cost_unit, experts, best_single, hull, random, oracle, category_ceiling,"
    " router, by_budget, worth, aiq, delta_aiq, apgr, cpt, curve, calibration, risk_coverage, leave_group_out,"
    " flip_rate,"
    " robustness, routing_ms, confusion, reliability, worst_prompts, date"
)
runner = CliRunner()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in it: the artifact is `trained / "router"`."""
    folder = tmp_path_factory.mktemp("run")
    result = fit(read_config(write_run(folder)), folder / "router", force=False, track=in_silence)
    assert result.refusals == {"quality": None, "cheap": None}
    return folder


def run(*arguments: str | Path) -> tuple[int, str]:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_each_category_ends_at_its_specialist(trained: Path) -> None:
    router = Router.load(trained / "router")
    nearby = dict.fromkeys(SIZES, Availability("disk", 1.0))
    unseen = prompts(20, seed=99)
    right = sum(
        router.route(Conversation.of_prompt(row["prompt"]), RouteOptions(), nearby).expert
        == SPECIALIST[row["category"]]
        for row in unseen
    )
    assert right >= 0.9 * len(unseen)  # the gate sends a few of them to the generalist


def test_a_category_that_the_generalist_masters_has_its_score_and_general_a_line_of_its_own(trained: Path) -> None:
    manifest = artifacts.load(trained / "router").manifest
    assert manifest.score["generic"]["gen"].score > 0.8 > manifest.overall["gen"].score
    assert set(manifest.objectives["quality"].mapping) == {*manifest.categories, "general"}


def test_a_category_with_the_gates_name_is_refused(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    path = tmp_path / "prompts.jsonl"
    path.write_text(path.read_text().replace('"generic"', '"general"'))
    for command in (("check", config), ("fit", config, "--out", tmp_path / "router")):
        code, said = run(*command)
        assert (code, "rename that category" in said) == (2, True)


def test_what_was_forced_says_forced_everywhere(tmp_path: Path) -> None:
    same = [{**row, "score": 0.5} for row in outcomes(prompts())]
    config = write_run(tmp_path)
    write_jsonl(tmp_path / "outcomes.jsonl", same)
    code, said = run("fit", config, "--out", tmp_path / "router", "--force")
    assert code == 0
    assert "quality: forced (--force), not earned: its gain over the best single expert is not certain" in said
    assert "shipped" not in said
    entry = artifacts.load(tmp_path / "router").manifest.objectives["quality"]
    assert entry.shipped
    assert entry.forced is not None
    assert "forced, not earned" in (tmp_path / "router" / "report.html").read_text()
    code, said = run("map", tmp_path / "router", "--out", tmp_path / "again")
    assert "forced" in said


def test_evaluating_on_training_prompts_warns_first(trained: Path, tmp_path: Path) -> None:
    files = ("--outcomes", trained / "outcomes.jsonl", "--json", tmp_path / "found.json", "--resamples", 100)
    code, said = run("evaluate", trained / "router", "--prompts", trained / "prompts.jsonl", *map(str, files))
    assert code == 0
    assert said.startswith("warning: the router was trained on 240 of the 240 prompts")
    assert json.loads((tmp_path / "found.json").read_text())["n_trained_on"] == 240
    fresh = prompts(20, seed=7)
    write_jsonl(tmp_path / "prompts.jsonl", fresh)
    write_jsonl(tmp_path / "outcomes.jsonl", outcomes(fresh))
    others = ("--prompts", tmp_path / "prompts.jsonl", "--outcomes", tmp_path / "outcomes.jsonl", "--resamples", 100)
    assert "warning" not in run("evaluate", trained / "router", *map(str, others))[1]


def test_an_artifact_that_does_not_tell_its_prompts_still_evaluates(trained: Path, tmp_path: Path) -> None:
    kept = artifacts.read_held_out(trained / "router")
    old = replace(kept, trained_on=np.empty(0, dtype=np.uint64))
    artifacts.save(artifacts.load(trained / "router"), old, None, tmp_path / "old")
    files = ("--prompts", trained / "prompts.jsonl", "--outcomes", trained / "outcomes.jsonl", "--resamples", 100)
    code, said = run("evaluate", tmp_path / "old", *map(str, files))
    assert (code, "warning" in said) == (0, False)


def test_a_budget_is_met_on_the_held_out_prompts(trained: Path) -> None:
    evaluation = json.loads((trained / "router" / "evaluation.json").read_text())
    (cheap,) = evaluation["by_budget"]
    assert cheap["budget_b"] == 0.0009
    assert cheap["mean_active_params_b"] <= 0.0009
    assert cheap["gain"] > 0.2
    assert evaluation["router"]["mean_active_params_b"] > cheap["mean_active_params_b"]


def test_the_evaluation_has_the_agreed_keys_and_agrees_with_itself(trained: Path) -> None:
    evaluation = json.loads((trained / "router" / "evaluation.json").read_text())
    assert ", ".join(evaluation) == KEYS + ", near_duplicates, cross_validated"
    assert list(evaluation["experts"]) == list(SIZES)
    assert evaluation["best_single"] == {"expert": "gen", "score": evaluation["experts"]["gen"]}
    row = evaluation["router"]
    assert row["gain"] == pytest.approx(row["score"] - evaluation["best_single"]["score"])
    assert row["gain_ci95"][0] <= row["gain"] <= row["gain_ci95"][1]
    assert evaluation["random"] < evaluation["best_single"]["score"] < row["score"] <= evaluation["oracle"]
    assert row["score"] <= evaluation["category_ceiling"] + 0.05
    for budget in evaluation["by_budget"]:
        assert budget["gain"] == pytest.approx(budget["score"] - budget["zero_router_score"])
    assert evaluation["risk_coverage"][-1]["score"] == pytest.approx(row["score"])
    assert set(evaluation["leave_group_out"]["per_group"]) == {f"set-{number}" for number in range(4)}
    assert evaluation["delta_aiq"] > 0.0


def test_training_again_gives_the_same_router(trained: Path, tmp_path: Path) -> None:
    again = fit(read_config(trained / "train.yaml"), tmp_path / "again", force=False, track=in_silence)
    assert artifacts.load(again.folder).version == artifacts.load(trained / "router").version


def test_the_matrix_that_trains_and_the_vector_that_serves_are_the_same(trained: Path) -> None:
    features = artifacts.load(trained / "router").features
    talks = [Conversation.of_prompt(row["prompt"]) for row in prompts(5, seed=3)] + [Conversation.of_prompt("")]
    matrix = weigh(count_ngrams(talks, features.bucket_bits), features).toarray()
    for row, talk in zip(matrix, talks, strict=True):
        vector = features.vector(talk.turns)
        served = np.zeros(len(row))
        served[vector.columns] = vector.weights
        assert row == pytest.approx(served, abs=1e-6)


def test_what_is_said_of_unseen_prompts_is_what_serving_would_say(trained: Path) -> None:
    """Out-of-fold logits and similarities, one fold done again through the serving classes: they know the n-grams
    that prompts seen have, and no others."""
    config = read_config(trained / "train.yaml")
    dataset = read_dataset(config.data.prompts, config.data.outcomes, config.expert_names)
    counts = count_ngrams(dataset.conversations, config.features.bucket_bits)
    folds = prompt_folds(dataset, 3, seed=0)
    basis = basis_of(counts, dataset, config.features)
    unseen = cross_fit(basis, dataset, config, folds)
    seen = folds[0].seen
    step_one = fit_step_one(basis.rows(seen), dataset.rows(seen), config)
    assert isinstance(basis.features, Features)
    known = np.flatnonzero(basis.known(seen, config.features.min_prompts))
    assert len(known) < basis.features.columns
    narrow = Features.of(basis.features.bucket_bits, basis.features.kept[known], basis.features.idf[known])
    for row in folds[0].left_out[:5]:
        served = narrow.vector(dataset.conversations[row].turns)
        vector = SparseVector(known[served.columns], served.weights)
        exponentials = np.exp(unseen.logits[row] - unseen.logits[row].max())
        assert step_one.classifier.probabilities(vector) == pytest.approx(exponentials / exponentials.sum(), abs=1e-4)
        assert step_one.gate.similarity(vector) == pytest.approx(unseen.similarities[row], abs=1e-4)


def test_prompts_without_category_or_outcomes_take_part_in_what_they_can(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    rows = prompts(60)
    for row in rows[::10]:
        row["category"] = None
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    full = outcomes(prompts(60))
    write_jsonl(tmp_path / "outcomes.jsonl", [row for at, row in enumerate(full) if at % 17])
    result = fit(read_config(path), tmp_path / "router", force=False, track=in_silence)
    assert result.shipped
    assert result.evaluation["n_incomplete"] > 0
    assert artifacts.load(result.folder).manifest.objectives["quality"].mapping["french"] == "fr"


def test_two_categories_and_no_groups_are_enough(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    rows = [{**row, "group": None} for row in prompts(60) if row["category"] in ("french", "python")]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    result = fit(read_config(path), tmp_path / "router", force=False, track=in_silence)
    assert result.evaluation["leave_group_out"] is None
    assert artifacts.load(result.folder).manifest.objectives["quality"].mapping["python"] == "py"


def test_pins_bans_and_a_cap_on_experts_hold(tmp_path: Path) -> None:
    rules = {"pins": {"french": "gen"}, "bans": {"units": ["un"]}, "max_experts": 2}
    config = read_config(write_run(tmp_path, mapping=rules, objectives={"quality": {}}))
    result = fit(config, tmp_path / "router", force=True, track=in_silence)
    entry = artifacts.load(result.folder).manifest.objectives["quality"]
    assert entry.mapping["french"] == "gen"
    assert entry.mapping["units"] != "un"
    assert len(entry.experts) <= 2
    router = Router.load(result.folder)
    nearby = dict.fromkeys(SIZES, Availability("disk", 1.0))
    for row in prompts(5, seed=5):
        assert router.route(Conversation.of_prompt(row["prompt"]), RouteOptions(), nearby).expert in entry.experts


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": 0}, "every prompt with an outcome from every expert has weight 0"),
        ({"synthetic": "gen"}, "no prompt with an outcome from every expert measures: synthetic prompts"),
    ],
)
def test_prompts_that_cannot_measure_are_told_by_evaluate_and_leave_map_unmeasured(
    trained: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    rows = prompts(5, seed=9)
    write_jsonl(tmp_path / "p.jsonl", [{**row, **change} for row in rows])
    write_jsonl(tmp_path / "o.jsonl", outcomes(rows))
    files = ("--prompts", tmp_path / "p.jsonl", "--outcomes", tmp_path / "o.jsonl")
    code, said = run("evaluate", trained / "router", *files)
    assert (code, sentence in said) == (2, True)
    code, said = run("map", trained / "router", "--out", tmp_path / "new", "--budget", "0.002", *files)
    assert (code, "not measured" in said) == (0, True)


def test_what_is_shipped_is_printed_with_the_gain_that_it_rests_on(tmp_path: Path) -> None:
    result = runner.invoke(app, ["fit", str(write_run(tmp_path)), "--out", str(tmp_path / "router")])
    evaluation = json.loads((tmp_path / "router" / "evaluation.json").read_text())
    gain = 100 * evaluation["cross_validated"]["quality"]["gain"]
    assert f"quality: shipped: cross-validated {gain:+.2f} points (+" in result.output


def test_experts_that_do_not_differ_earn_no_router(tmp_path: Path) -> None:
    """Exit 3, the artifact set aside and its objectives refused by the server; --force ships it all the same."""
    path = write_run(tmp_path)
    alike = [{**row, "score": 0.5} for row in outcomes(prompts(60))]
    write_jsonl(tmp_path / "outcomes.jsonl", alike)
    code, output = run("fit", path, "--out", tmp_path / "router")
    assert code == 3
    assert "quality: not shipped: its gain over the best single expert is not certain" in output
    assert not (tmp_path / "router").exists()
    assert Router.load(tmp_path / "router.refused").objectives == ()
    assert run("fit", path, "--out", tmp_path / "router", "--force")[0] == 0
    assert Router.load(tmp_path / "router").objectives == ("quality", "cheap")


def test_evaluate_measures_an_artifact_on_other_prompts(trained: Path, tmp_path: Path) -> None:
    rows = prompts(30, seed=42)
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "o.jsonl", outcomes(rows, seed=42))
    numbers = tmp_path / "numbers.json"
    files = ("--prompts", tmp_path / "p.jsonl", "--outcomes", tmp_path / "o.jsonl", "--json", numbers)
    code, output = run("evaluate", trained / "router", *files)
    assert code == 0, output
    evaluation = json.loads(numbers.read_text())
    assert ", ".join(evaluation) == KEYS + ", n_trained_on"
    assert evaluation["n_prompts"] == 120
    assert evaluation["router"]["gain"] > 0.2
    assert evaluation["leave_group_out"] is None
    # the same in short: every expert, both objectives with their gains, calibration before and after
    assert f"{100 * evaluation['router']['gain']:+.2f} (" in output
    assert f"{100 * evaluation['by_budget'][0]['gain']:+.2f} (" in output
    assert all(f"{100 * score:.2f}" in output for score in evaluation["experts"].values())
    calibration = evaluation["calibration"]
    assert f"{calibration['ece']:.3f} (before calibration {calibration['ece_before']:.3f})" in output
    numbers.unlink()
    code, again = run("evaluate", trained / "router", *files[:-2])
    assert (code, numbers.exists()) == (0, False)
    assert f"{100 * evaluation['router']['gain']:+.2f} (" in again


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sed": 1}, "sed: there is no such key"),
        (
            {"objectives": {"tiny": {"active_params_b": 0.0001}}},
            "objectives.tiny.active_params_b: 0.0001 is below the smallest expert's 0.0007",
        ),
        ({"mapping": {"pins": {"cooking": "fr"}}}, "category 'cooking', which the data does not have"),
        ({"data": {"prompts": ["no.jsonl"], "outcomes": ["outcomes.jsonl"]}}, "no such file"),
        ({"data": {"prompts": ["prompts.jsonl"], "outcomes": ["outcomes.jsonl"], "label": "topic"}}, "'topic'"),
        (
            {"experts": [{"name": "fr", "active_params_b": 1}], "objectives": {"quality": {}}},
            "unknown expert 'py' (known: fr)",
        ),
    ],
)
def test_wrong_input_ends_with_a_sentence_and_exit_2(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    code, output = run("fit", write_run(tmp_path, 15, **change), "--out", tmp_path / "router")
    assert code == 2, output
    assert sentence in output
    assert "Traceback" not in output
    assert not (tmp_path / "router").exists()


def test_a_folder_in_the_way_is_noticed_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "thesis.txt").write_text("years of work")
    code, output = run("fit", write_run(tmp_path, 15), "--out", tmp_path / "router")
    assert (code, "is not a router artifact" in output) == (2, True)


def test_a_damaged_artifact_is_not_evaluated(trained: Path, tmp_path: Path) -> None:
    files = ("--prompts", trained / "prompts.jsonl", "--outcomes", trained / "outcomes.jsonl")
    code, output = run("evaluate", tmp_path / "none", *files, "--json", tmp_path / "numbers.json")
    assert code == 2
    assert output.startswith(f"coe-train: router artifact: there is no folder {tmp_path / 'none'}; `coe-train fit`")


@pytest.mark.parametrize("stage", ["counting", "some prompts", "all prompts", "routing"])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, stage: str) -> None:
    config = read_config(write_run(tmp_path, 15))
    before = sorted(path.name for path in tmp_path.iterdir())

    def interrupted(items: Sequence[Item], what: str) -> Iterable[Item]:
        if stage in what:
            raise KeyboardInterrupt
        return items

    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "router", force=False, track=interrupted)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("command", "lesson"),
    [([], "prompt_id, expert, score"), (["fit"], "Exit 3: no objective earned it"), (["evaluate"], "--outcomes")],
)
def test_help_teaches(command: list[str], lesson: str) -> None:
    result = runner.invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert lesson in result.output
