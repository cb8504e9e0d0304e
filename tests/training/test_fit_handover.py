"""A training run on outcomes with log-probabilities: what artifact, evaluation and report say of handing over."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coe_server.routing import artifact as artifacts
from coe_server.routing.certainty import FIRST_TOKENS, WHOLE
from router_training.cli import app
from router_training.data.first_tokens import summary
from tests.training.recorded import SIZES, outcomes, prompts, write_jsonl, write_run

runner = CliRunner()


def told(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The outcomes with log-probabilities of ten tokens: right answers near -0.02, wrong ones near -1.5."""
    draw = random.Random(seed)
    return [
        {**row, **summary([-(0.02 if row["score"] else 1.5) * draw.uniform(0.3, 3.0) for _ in range(10)])}
        for row in rows
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    settings = write_run(folder)
    write_jsonl(folder / "outcomes.jsonl", told(outcomes(prompts())))
    done = runner.invoke(app, ["fit", str(settings), "--out", str(folder / "router")])
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_the_artifact_says_how_well_each_expert_knows_itself(trained: tuple[Path, str]) -> None:
    manifest = artifacts.load(trained[0] / "router").manifest
    assert manifest.certainty is not None
    assert set(manifest.certainty) == set(manifest.instead) == set(SIZES)
    for curves in manifest.certainty.values():
        assert {curve.tokens for curve in curves} == {*FIRST_TOKENS, WHOLE}
        assert all(curve.auroc is not None and curve.auroc > 0.9 for curve in curves)
    model = manifest.certainty_models["gen"]
    assert model.probability([-0.02] * 8, None, 8) > 0.8
    assert model.probability([-1.5] * 8, None, 8) < 0.2


def test_every_objective_has_a_verdict_with_its_evidence(trained: tuple[Path, str]) -> None:
    folder, said = trained
    objectives = artifacts.load(folder / "router").manifest.objectives
    rows = {
        row["objective"]: row for row in json.loads((folder / "router" / "evaluation.json").read_text())["handover"]
    }
    assert set(rows) == set(objectives)
    for name, entry in objectives.items():
        handover = entry.handover
        assert handover is not None
        assert rows[name]["shipped"] == handover.shipped
        assert rows[name]["cross_validated"]["gain"] == handover.gain
        if handover.shipped:
            assert handover.gain_ci95[0] > 0.0
        assert f"handover, objective {name}" in said


def test_the_report_has_a_section_on_it(trained: tuple[Path, str]) -> None:
    report = (trained[0] / "router" / "report.html").read_text()
    assert "an expert&#x27;s own tokens say" in report or "an expert's own tokens say" in report
    assert "first 16" in report


def test_evaluate_measures_the_rule_on_outcomes_with_log_probabilities(trained: tuple[Path, str]) -> None:
    folder = trained[0]
    fresh = prompts(20, seed=5)
    files = ["--prompts", str(write_jsonl(folder / "p.jsonl", fresh)), "--outcomes"]
    for rows, is_measured in ((told(outcomes(fresh)), True), (outcomes(fresh), False)):
        path = write_jsonl(folder / "o.jsonl", rows)
        done = runner.invoke(app, ["evaluate", str(folder / "router"), *files, str(path), "--resamples", "100"])
        assert done.exit_code == 0
        assert ("handover, objective quality" in done.output) is is_measured


@pytest.mark.parametrize("kind", ["certainty", "agreement"])
def test_weak_scores_calibrate_nothing(tmp_path: Path, kind: str) -> None:
    settings = write_run(tmp_path)
    weak = [{**row, "scored_by": kind} for row in told(outcomes(prompts()))]
    write_jsonl(tmp_path / "outcomes.jsonl", weak)
    done = runner.invoke(app, ["fit", str(settings), "--out", str(tmp_path / "router"), "--force"])
    assert done.exit_code == 0, done.output
    assert artifacts.load(tmp_path / "router").manifest.certainty is None
    assert "handover" not in done.output
