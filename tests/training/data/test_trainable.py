"""What cannot be trained on is refused by `check` and by `fit` alike, before anything is learned."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from router_training.cli import app
from tests.training.recorded import write_run


def run(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stderr


def data(**changes: Any) -> dict[str, Any]:
    return {"data": {"prompts": ["prompts.jsonl"], "outcomes": ["outcomes.jsonl"], **changes}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (data(held_out_share=0.9999), "data.held_out_share: 0.9999 leaves none of the 240 prompts to train on"),
        (data(held_out_share=0.0001), "data.held_out_share: 0.0001 leaves none of the 240 prompts to measure by"),
        (data(held_out_share=0.9911), "the 1 training prompts of 240 are too few: no category has two different ones"),
        (data(label="categroy"), "no training prompt has a 'categroy'; data.label names the column"),
        ({"mapping": {"pins": {"nocat": "fr"}}}, "pins or bans name category 'nocat', which the data does not have"),
        ({"mapping": {"bans": {"nocat": ["fr"]}}}, "pins or bans name category 'nocat', which the data does not have"),
    ],
)
def test_check_refuses_what_fit_refuses(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    config = write_run(tmp_path, **changes)
    for words in (("check", config), ("fit", config, "--out", tmp_path / "router")):
        status, told = run(*words)
        assert (status, told.count("\n")) == (2, 1)
        assert sentence in told
    assert not (tmp_path / "router").exists()


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
        ("scikit-learn", "sklearn", ("fit", "train.yaml", "--out", "router")),
        ("pyarrow", "pyarrow", ("collect", "collect.yaml", "--prompts", "p", "--out", "o.jsonl")),
    ],
)
def test_without_the_extra_a_sentence_says_which_it_is(
    monkeypatch: pytest.MonkeyPatch, package: str, module: str, words: tuple[str, ...]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in {"router_training", module}]:
        if name not in {"router_training", "router_training.cli", "router_training.config"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert run(*words) == (2, f"{package} is not installed: pip install 'coe-server[train]'\n")
