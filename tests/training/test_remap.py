from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from coe_server.errors import ConfigError, DatasetError
from coe_server.routing import artifact as artifacts
from coe_server.routing.classifier import Corrections
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.assignment.objectives import Limits
from router_training.cli import app
from router_training.config import read_config
from router_training.fit import fit
from router_training.map_options import MapOptions
from router_training.remap import chosen_shares, remap
from tests.training.recorded import SIZES, outcomes, prompts, write_jsonl, write_run

runner = CliRunner()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(read_config(write_run(folder)), folder / "router", force=True, track=in_silence)
    return folder / "router"


def test_solved_again_without_a_wish_an_artifact_stays_what_it_is(trained: Path, tmp_path: Path) -> None:
    before = artifacts.load(trained)
    after = remap(trained, tmp_path / "again", MapOptions(), in_silence)
    assert after.manifest.objectives == before.manifest.objectives
    assert after.mapping == before.mapping
    mark = json.loads((tmp_path / "again" / "evaluation.json").read_text())["re_solved"]
    assert mark == {"from": before.version, "measured": False, "objectives_not_measured": []}


def test_a_new_budget_is_an_objective_that_the_server_takes(trained: Path, tmp_path: Path) -> None:
    result = runner.invoke(
        app, ["map", str(trained), "--out", str(tmp_path / "new"), "--budget", "0.002", "--objective", "thrifty=0.001"]
    )
    assert result.exit_code == 0, result.output
    assert "budget-0.002b" in result.output
    router = Router.load(tmp_path / "new")
    assert router.objectives == ("quality", "cheap", "budget-0.002b", "thrifty")
    entry = router.artifact.manifest.objectives["thrifty"]
    assert (entry.active_params_b, entry.shipped, entry.measured) == (0.001, True, False)
    assert entry.expected_active_params_b <= 0.001
    nearby = dict.fromkeys(SIZES, Availability("disk", 1.0))
    decision = router.route(Conversation.of_prompt("bonjour merci"), RouteOptions(objective="thrifty"), nearby)
    assert decision.expert == "fr"


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_the_shares_of_the_experts_add_up_to_the_mean_cost_of_each_objective(
    trained: Path, tmp_path: Path, mode: str
) -> None:
    plain = artifacts.load(trained)
    changed = replace(plain, manifest=plain.manifest.model_copy(update={"mode": mode}))
    artifacts.save(changed, artifacts.read_held_out(trained), None, tmp_path / mode)
    after = remap(tmp_path / mode, tmp_path / "after", MapOptions(budgets={"thrifty": 0.0012}), in_silence)
    shares = chosen_shares(tmp_path / "after")["thrifty"]
    assert sum(shares.values()) == pytest.approx(1.0)
    spent = sum(SIZES[expert] * share for expert, share in shares.items())
    assert spent == pytest.approx(after.manifest.objectives["thrifty"].expected_active_params_b, rel=1e-3)


def test_the_table_of_a_mapping_shows_the_answering_experts_and_not_the_programs_mapping(
    trained: Path, tmp_path: Path
) -> None:
    result = runner.invoke(app, ["map", str(trained), "--out", str(tmp_path / "again")])
    shares = chosen_shares(tmp_path / "again")["cheap"]
    manifest = artifacts.load(trained).manifest
    mapped = {manifest.objectives["cheap"].mapping[name] for name in manifest.categories}
    assert {name for name, share in shares.items() if share > 0.0} > mapped
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("│ cheap")]
    told = line.split("│")[6].strip().split(", ")
    assert told[0].endswith(f" {max(shares.values()):.0%}".replace("%", " %"))
    assert {one.split()[0] for one in told} == {name for name, share in shares.items() if share > 0.0}


def test_corrections_stay_and_a_new_expert_has_none(trained: Path, tmp_path: Path) -> None:
    plain, unseen = artifacts.load(trained), artifacts.read_held_out(trained)
    draw = np.random.default_rng(0)
    coefficients = draw.normal(0.0, 0.01, (len(plain.features.kept), len(SIZES))).astype(np.float32)
    corrected = replace(
        plain,
        manifest=plain.manifest.model_copy(update={"corrections": True}),
        corrections=Corrections(coefficients),
    )
    moved = replace(unseen, corrections=draw.normal(0.0, 0.2, unseen.corrections.shape).astype(np.float32))
    artifacts.save(corrected, moved, None, tmp_path / "corrected")
    same = remap(tmp_path / "corrected", tmp_path / "same", MapOptions(), in_silence)
    assert same.manifest.objectives["cheap"].multiplier != plain.manifest.objectives["cheap"].multiplier
    asked = prompts(20, seed=7)
    files = {"p": write_jsonl(tmp_path / "p.jsonl", asked)}
    rows = [*outcomes(asked), *({"prompt_id": row["prompt_id"], "expert": "new", "score": 0.5} for row in asked)]
    files["o"] = write_jsonl(tmp_path / "o.jsonl", rows)
    newcomer = plain.manifest.experts[0].model_copy(update={"name": "new"})
    options = MapOptions(new_experts=(newcomer,), prompts=(files["p"],), outcomes=(files["o"],))
    after = remap(tmp_path / "corrected", tmp_path / "after", options, in_silence)
    assert after.corrections is not None
    assert np.array_equal(after.corrections.coefficients[:, :-1], coefficients)
    assert not after.corrections.coefficients[:, -1].any()
    assert artifacts.read_held_out(tmp_path / "after").corrections.shape == (len(unseen.weights), len(SIZES) + 1)


def test_step_one_is_not_touched(trained: Path, tmp_path: Path) -> None:
    remap(trained, tmp_path / "new", MapOptions({"small": 0.001}), in_silence)
    for name in ("weights.safetensors", "held_out.safetensors"):
        assert (tmp_path / "new" / name).read_bytes() == (trained / name).read_bytes()


def test_pins_bans_and_the_number_of_experts_are_obeyed(trained: Path, tmp_path: Path) -> None:
    limits = Limits(max_experts=2, pins={"python": "un"}, bans={"french": ["fr"]})
    after = remap(trained, tmp_path / "new", MapOptions(limits=limits), in_silence)
    for entry in after.manifest.objectives.values():
        assert len(entry.experts) <= 2
        assert entry.mapping["python"] == "un"
        assert entry.mapping["french"] != "fr"
    assert after.manifest.pins == {"python": "un"}


def test_a_new_expert_needs_only_its_outcomes(trained: Path, tmp_path: Path) -> None:
    rows = prompts(200, seed=5)
    write_jsonl(tmp_path / "p.jsonl", rows)
    scored = [
        {"prompt_id": row["prompt_id"], "expert": "paris", "score": float(row["category"] == "french")} for row in rows
    ]
    write_jsonl(tmp_path / "o.jsonl", scored)
    arguments = ["map", str(trained), "--out", str(tmp_path / "new"), "--expert", "paris=0.0005,0.0005"]
    files = ["--prompts", str(tmp_path / "p.jsonl"), "--outcomes", str(tmp_path / "o.jsonl")]
    result = runner.invoke(app, [*arguments, *files])
    assert result.exit_code == 0, result.output
    manifest = artifacts.load(tmp_path / "new").manifest
    assert manifest.score["french"]["paris"].score > 0.8
    assert manifest.score["python"]["paris"].score < 0.2
    assert manifest.objectives["quality"].mapping["french"] == "paris"
    assert not manifest.objectives["quality"].measured
    without = runner.invoke(app, arguments)
    assert without.exit_code == 2
    assert "a new expert needs recorded outcomes" in without.output


def test_the_prompts_of_a_new_expert_count_for_their_own_categories_whatever_they_look_like(
    trained: Path, tmp_path: Path
) -> None:
    swapped = {"french": "python", "python": "french"}
    rows = [{**row, "category": swapped.get(row["category"], row["category"])} for row in prompts(60, seed=8)]
    rated = [
        {"prompt_id": row["prompt_id"], "expert": "new", "score": float(row["category"] == "french")} for row in rows
    ]
    newcomer = artifacts.load(trained).manifest.experts[0].model_copy(update={"name": "new"})
    files = (write_jsonl(tmp_path / "p.jsonl", rows),), (write_jsonl(tmp_path / "o.jsonl", rated),)
    options = MapOptions(new_experts=(newcomer,), prompts=files[0], outcomes=files[1])
    score = remap(trained, tmp_path / "new", options, in_silence).manifest.score
    assert score["french"]["new"].score > 0.8
    assert score["python"]["new"].score < 0.2


def test_with_outcomes_of_every_expert_all_is_measured_again(trained: Path, tmp_path: Path) -> None:
    rows = prompts(40, seed=6)
    write_jsonl(tmp_path / "p.jsonl", rows)
    write_jsonl(tmp_path / "o.jsonl", outcomes(rows, seed=6))
    options = MapOptions(
        {"thrifty": 0.001}, prompts=[tmp_path / "p.jsonl"], outcomes=[tmp_path / "o.jsonl"], resamples=200
    )
    after = remap(trained, tmp_path / "new", options, in_silence)
    assert all(entry.measured for entry in after.manifest.objectives.values())
    evaluation = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert evaluation["re_solved"]["measured"] is True
    assert {row["objective"] for row in evaluation["by_budget"]} == {"cheap", "thrifty"}


def test_a_refused_objective_stays_refused(trained: Path, tmp_path: Path) -> None:
    loaded = artifacts.load(trained)
    entry = loaded.manifest.objectives["cheap"].model_copy(update={"shipped": False, "refusal": "it lost"})
    objectives = {**loaded.manifest.objectives, "cheap": entry}
    refused = replace(loaded, manifest=loaded.manifest.model_copy(update={"objectives": objectives}))
    artifacts.save(refused, artifacts.read_held_out(trained), None, tmp_path / "refused")
    after = remap(tmp_path / "refused", tmp_path / "new", MapOptions(limits=Limits(max_experts=2)), in_silence)
    assert (after.manifest.objectives["cheap"].shipped, after.manifest.objectives["cheap"].refusal) == (
        False,
        "it lost",
    )


def test_what_a_person_changed_in_the_mapping_stays_changed(trained: Path, tmp_path: Path) -> None:
    loaded = artifacts.load(trained)
    artifacts.save(loaded, artifacts.read_held_out(trained), None, tmp_path / "changed")
    mapping = json.loads((tmp_path / "changed" / "mapping.json").read_text())
    mapping["quality"]["french"] = "gen"
    (tmp_path / "changed" / "mapping.json").write_text(json.dumps(mapping))
    after = remap(tmp_path / "changed", tmp_path / "new", MapOptions(), in_silence)
    assert after.pins("quality") == {"french": "gen"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (MapOptions({"tiny": 0.0001}), "below the cheapest expert"),
        (MapOptions(limits=Limits(pins={"nowhere": "fr"})), "'nowhere' is none of"),
        (MapOptions(limits=Limits(bans={"french": ["nobody"]})), "'nobody' is none of"),
        (MapOptions(limits=Limits(hosted_params_b=0.0001)), "no mapping fits"),
        (MapOptions(limits=Limits(bans={"french": list(SIZES)})), "every expert is banned from category 'french'"),
        (
            MapOptions(limits=Limits(pins={"french": "fr"}, bans={"french": ["fr"]})),
            "category 'french' is pinned to 'fr', which is banned from it",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    trained: Path, tmp_path: Path, options: MapOptions, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        remap(trained, tmp_path / "new", options, in_silence)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "word",
    [
        *("--expert=x=1", "--expert=a b=1,1", "--expert=x=1e308,1", "--pin=french"),
        *("--objective=a=b", "--objective=a b=3", "--budget=-3"),
        *("--hosted-budget=-1", "--hosted-budget=0", "--hosted-budget=nan", "--prompts=p.jsonl", "--outcomes=o.jsonl"),
    ],
)
def test_words_that_cannot_be_read_are_named(trained: Path, tmp_path: Path, word: str) -> None:
    result = runner.invoke(app, ["map", str(trained), "--out", str(tmp_path / "new"), word])
    assert result.exit_code == 2
    assert word.partition("=")[0] in result.output


def test_one_objective_has_one_budget(trained: Path, tmp_path: Path) -> None:
    words = ["map", str(trained), "--out", str(tmp_path / "new"), "--objective", "x=8", "--objective", "x=9"]
    result = runner.invoke(app, words)
    assert (result.exit_code, "objective x is given two budgets, 8.0 and 9.0" in result.output) == (2, True)


def test_a_gain_on_prompts_that_the_router_was_trained_on_is_shown_with_a_warning(
    trained: Path, tmp_path: Path
) -> None:
    rows = [*prompts(), *prompts(20, seed=7)]
    files = [write_jsonl(tmp_path / "p.jsonl", rows), write_jsonl(tmp_path / "o.jsonl", outcomes(rows))]
    words = ["map", str(trained), "--out", str(tmp_path / "new"), "--prompts", str(files[0])]
    result = runner.invoke(app, [*words, "--outcomes", str(files[1])])
    assert result.exit_code == 0, result.output
    assert "warning: the router was trained on 240 of the 320 prompts" in result.output


def test_prompts_that_cannot_be_answered_leave_what_is_there_as_it_is(trained: Path, tmp_path: Path) -> None:
    remap(trained, tmp_path / "new", MapOptions({"small": 0.001}), in_silence)
    before = artifacts.load(tmp_path / "new").version
    rows = prompts(5)
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    seen = [{**row, "prompt": None, "messages": image} for row in rows]
    files = (write_jsonl(tmp_path / "p.jsonl", seen), write_jsonl(tmp_path / "o.jsonl", outcomes(rows)))
    options = MapOptions({"other": 0.002}, prompts=files[:1], outcomes=files[1:])
    with pytest.raises(DatasetError, match="cannot be answered"):
        remap(trained, tmp_path / "new", options, in_silence)
    assert artifacts.load(tmp_path / "new").version == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "o.jsonl", "p.jsonl"]
