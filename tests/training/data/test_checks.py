"""What cannot be trained on is refused by `check` and by `fit` alike, before anything is learned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from router_training import in_silence
from router_training.cli import app
from router_training.config import read_config
from router_training.fit import fit
from tests.training.recorded import SIZES, write_jsonl, write_run


def run(*words: str | Path) -> tuple[int, str]:
    """The exit code, and what a refusal says after the program's name."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stderr.removeprefix("coe-train: ")


def data(**changes: Any) -> dict[str, Any]:
    return {"data": {"prompts": ["prompts.jsonl"], "outcomes": ["outcomes.jsonl"], **changes}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (data(held_out_share=0.9999), "data.held_out_share: 0.9999 leaves none of the 240 prompts to train on"),
        (data(held_out_share=0.0001), "data.held_out_share: 0.0001 leaves none of the 240 prompts to measure by"),
        (
            data(held_out_share=0.0001, split_by="group"),
            "leaves none of the 240 prompts to measure by: groups stay whole, and there are 4",
        ),
        (data(held_out_share=0.9911), "the 1 training prompts of 240 are too few: no category has two different ones"),
        (data(label="categroy"), "no training prompt has a 'categroy'; data.label names the column"),
        ({"mapping": {"pins": {"nocat": "fr"}}}, "pins or bans name category 'nocat', which the data does not have"),
        ({"mapping": {"bans": {"nocat": ["fr"]}}}, "pins or bans name category 'nocat', which the data does not have"),
        (
            {"probes": {"own": [{"prompt": "x", "category": "nocat"}]}},
            "probes.own: one names category 'nocat', which the data does not have",
        ),
    ],
)
def test_check_refuses_what_fit_refuses(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    config = write_run(tmp_path, **changes)
    for words in (("check", config), ("fit", config, "--out", tmp_path / "router")):
        status, told = run(*words)
        assert (status, told.count("\n")) == (2, 1)
        assert sentence in told
    assert not (tmp_path / "router").exists()


def recorded_anew(folder: Path, file: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """The config of a run with one of its files changed row by row; None leaves a row out."""
    config = write_run(folder)
    rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
    write_jsonl(folder / file, [new for row in rows if (new := change(row)) is not None])
    return config


def test_an_expert_without_any_outcome_is_named(tmp_path: Path) -> None:
    config = recorded_anew(tmp_path, "outcomes.jsonl", lambda row: None if row["expert"] == "py" else row)
    assert run("check", config) == (
        2,
        "expert 'py' has no outcome: record some, or take it out of the config's experts\n",
    )


def test_prompts_that_all_weigh_nothing_are_no_data(tmp_path: Path) -> None:
    config = recorded_anew(tmp_path, "prompts.jsonl", lambda row: {**row, "weight": 0})
    assert run("check", config) == (
        2,
        "every training prompt with an outcome from every expert has weight 0\n",
    )


def test_check_counts_one_prompt_as_one(tmp_path: Path) -> None:
    first = {"prompt": " ", "category": "rare"}
    rare = recorded_anew(
        tmp_path, "prompts.jsonl", lambda row: row | (first if row["prompt_id"] == "units-0-0" else {})
    )
    told = " ".join(CliRunner().invoke(app, ["check", str(rare)]).stdout.split())
    assert "note: 1 category has fewer prompts than there are folds (3): rare" in told
    assert "note: 1 prompt has no text of a user" in told


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def test_prompts_with_images_that_no_expert_sees_are_named(tmp_path: Path) -> None:
    def with_image(row: dict[str, Any]) -> dict[str, Any]:
        if row["prompt_id"] not in {"french-0-3", "units-0-11"}:
            return row
        said = [{"role": "user", "content": [{"type": "text", "text": row["prompt"]}, IMAGE]}]
        return {**row, "prompt": None, "messages": said}

    config = recorded_anew(tmp_path, "prompts.jsonl", with_image)
    for words in (("check", config), ("fit", config, "--out", tmp_path / "router")):
        status, told = run(*words)
        assert (status, told.count("\n")) == (2, 1)
        assert told.startswith(
            "no expert of the configuration can take 2 prompts ('french-0-3', 'units-0-11') (fr cannot see images;"
        )
        assert told.endswith("modalities or context_tokens of an expert that can, or leave these prompts out\n")
    seeing = [{"name": n, "active_params_b": s, "vision": n == "gen"} for n, s in SIZES.items()]
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**settings, "experts": seeing}))
    assert run("check", config)[0] == 0
    assert run("fit", config, "--out", tmp_path / "router", "--force")[0] == 0
    blind = [{**one, "vision": False} for one in seeing]
    config.write_text(yaml.safe_dump({**settings, "experts": blind}))
    manifest = tmp_path / "router/manifest.json"
    manifest.write_text(manifest.read_text().replace('"vision": true', '"vision": false'))
    recorded = ("--prompts", tmp_path / "prompts.jsonl", "--outcomes", tmp_path / "outcomes.jsonl")
    status, told = run("evaluate", tmp_path / "router", *recorded)
    assert status == 2
    assert told.startswith("2 prompts ('french-0-3', 'units-0-11') cannot be answered under objective 'cheap': no")


def test_many_prompts_that_no_expert_can_take_are_counted(tmp_path: Path) -> None:
    small = [{"name": n, "active_params_b": s, "context_tokens": 2} for n, s in SIZES.items()]
    status, told = run("check", write_run(tmp_path, experts=small))
    assert status == 2
    assert "can take 240 prompts (" in told
    assert ", ...) (fr holds 2 tokens and the request needs at least about" in told


def test_check_counts_outcomes_without_a_score_and_takes_any_name(tmp_path: Path) -> None:
    """Names that a terminal, or what draws its tables, would take for orders."""
    config = recorded_anew(
        tmp_path, "outcomes.jsonl", lambda row: {**row, "score": None if row["prompt_id"] == "french-0-1" else 0.5}
    )
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    odd = {"french": "[/red]", "units": ":warning:", "python": "\x1b[31m\n\ud83d", "generic": "a" * 200}
    write_jsonl(tmp_path / "prompts.jsonl", [{**row, "category": odd[row["category"]]} for row in rows])
    done = CliRunner().invoke(app, ["check", str(config)], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert "note: 4 outcomes have no score (null or NaN): it counts as missing" in done.stdout
    assert all(name in done.stdout for name in ("[/red]", ":warning:", r"\x1b[31m\n?", "a" * 200))


def test_check_counts_outcomes_of_prompts_that_are_not_there(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    with (tmp_path / "outcomes.jsonl").open("a") as file:
        file.write(json.dumps({"prompt_id": "french-0-1 ", "expert": "fr", "score": 1}) + "\n")
    done = CliRunner().invoke(app, ["check", str(config)], env={"COLUMNS": "300"})
    assert "note: 1 outcome is of prompts that are not in data.prompts: left out" in done.stdout


def test_prompts_without_any_text_of_a_user_are_refused(tmp_path: Path) -> None:
    config = recorded_anew(
        tmp_path,
        "prompts.jsonl",
        lambda row: {**row, "prompt": None, "messages": [{"role": "human", "content": row["prompt"]}]},
    )
    for words in (("check", config), ("fit", config, "--out", tmp_path / "router")):
        status, told = run(*words)
        assert status == 2
        assert "none of the 240 prompts has text of a user, which routing reads" in told


def test_near_duplicates_that_leave_a_side_empty_are_told(tmp_path: Path) -> None:
    config = recorded_anew(tmp_path, "prompts.jsonl", lambda row: {**row, "prompt": "the same words every time"})
    assert run("check", config) == (
        2,
        "data.held_out_share: 0.2 leaves none of the 240 prompts to measure by:"
        " near-duplicates stay together, and 1 of them are different\n",
    )


def test_prompts_that_only_train_are_told_where_none_is_left_to_measure_by(tmp_path: Path) -> None:
    config = recorded_anew(tmp_path, "prompts.jsonl", lambda row: {**row, "synthetic": "writer"})
    assert run("check", config) == (
        2,
        "data.held_out_share: 0.2 leaves none of the 240 prompts to measure by: 240 of them only train,"
        " since they are synthetic or scored by consensus or certainty; add prompts of users with outcomes of another"
        " scorer\n",
    )


def test_a_label_that_no_prompt_has_is_not_measured_without_a_word(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    fit(read_config(config), tmp_path / "router", force=True, track=in_silence)
    recorded = ("--prompts", tmp_path / "prompts.jsonl", "--outcomes", tmp_path / "outcomes.jsonl")
    assert run("evaluate", tmp_path / "router", *recorded, "--label", "kind") == (
        2,
        "--label: no prompt has a 'kind'\n",
    )


def test_a_pin_on_general_needs_no_such_label(tmp_path: Path) -> None:
    assert run("check", write_run(tmp_path, mapping={"pins": {"general": "gen"}}))[0] == 0


@pytest.mark.parametrize("command", [("fit", "train.yaml"), ("map", "router")])
def test_nothing_is_learned_for_a_place_that_cannot_be_written(tmp_path: Path, command: tuple[str, str]) -> None:
    write_run(tmp_path, data={"prompts": ["gone.jsonl"], "outcomes": ["gone.jsonl"]})
    status, told = run(command[0], tmp_path / command[1], "--out", "/proc/router")
    assert status == 2
    assert "--out: /proc cannot be written" in told


def test_numbers_are_not_worked_out_for_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    status, told = run("evaluate", tmp_path, "--prompts", "p", "--outcomes", "o", "--json", "/proc/x")
    assert status == 2
    assert "--json: /proc/x cannot be written" in told


def test_resamples_have_a_limit(tmp_path: Path) -> None:
    words = ("evaluate", tmp_path, "--prompts", "p", "--outcomes", "o", "--resamples")
    assert "Invalid value for '--resamples'" in run(*words, "99999999999999999999")[1]
    assert "Invalid value" not in run(*words, "100000")[1]
    status, told = run("check", write_run(tmp_path, shipping={"resamples": 100_001}))
    assert status == 2
    assert "shipping.resamples" in told


@pytest.mark.parametrize(
    ("package", "module", "words"),
    [
        ("scikit-learn", "sklearn", ("fit", "CONFIG", "--out", "router")),
        ("pyarrow", "pyarrow", ("collect", "CONFIG", "--prompts", "p", "--out", "o.jsonl")),
    ],
)
def test_without_the_extra_a_sentence_says_which_it_is(
    package: str, module: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    words = tuple(str(write_run(tmp_path)) if word == "CONFIG" else word for word in words)
    program = "import sys; sys.modules[sys.argv.pop(1)] = None; from router_training.__main__ import main; main()"
    ended = subprocess.run((sys.executable, "-c", program, module, *words), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"coe-train: {package} is not installed: it comes with the extra `train` (docs/upgrade.md)\n",
    )
