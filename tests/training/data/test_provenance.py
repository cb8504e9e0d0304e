"""Prompts that experts wrote, scores by agreement, and faulty answers: what `check` says and what `fit` refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from coe_server.routing import artifact as artifacts
from router_training.cli import app
from router_training.config import read_config
from router_training.data.dataset import Dataset, read_dataset
from router_training.data.provenance import BY_AGREEMENT_ALONE
from router_training.data.split import split
from tests.training.recorded import outcomes, prompts, write_jsonl, write_run


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words], terminal_width=300)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def data_of(config: Path) -> Dataset:
    settings = read_config(config)
    return read_dataset(settings.data.prompts, settings.data.outcomes, settings.expert_names)


def agreed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "scored_by": "agreement"} for row in rows]


def test_nothing_ships_on_agreement_alone_without_force(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    write_jsonl(tmp_path / "outcomes.jsonl", agreed(outcomes(prompts())))
    code, said = run("fit", config, "--out", tmp_path / "router")
    assert (code, BY_AGREEMENT_ALONE in said) == (3, True)
    report = (tmp_path / "router.refused" / "report.html").read_text()
    assert "scored by agreement" in report[: report.index("<table")]
    code, said = run("fit", config, "--out", tmp_path / "router", "--force")
    assert (code, "forced (--force), not earned: scored by agreement alone" in said) == (0, True)
    assert artifacts.load(tmp_path / "router").manifest.objectives["quality"].forced == BY_AGREEMENT_ALONE
    files = ("--prompts", tmp_path / "prompts.jsonl", "--outcomes", tmp_path / "outcomes.jsonl")
    assert "scored by agreement" in run("evaluate", tmp_path / "router", *files, "--resamples", 100)[1]
    code, said = run("map", tmp_path / "router", "--out", tmp_path / "again", "--budget", 0.001, *files)
    assert code == 0
    assert {one.refusal for one in artifacts.load(tmp_path / "again").manifest.objectives.values()} >= {
        BY_AGREEMENT_ALONE
    }
    assert "scored by agreement" in run("check", config)[1]


def test_beside_other_scores_those_by_agreement_are_never_held_out(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    rows = outcomes(prompts())
    half = {row["prompt_id"] for row in rows[::8]}
    mixed = [{**row, "scored_by": "agreement"} if row["prompt_id"] in half else row for row in rows]
    write_jsonl(tmp_path / "outcomes.jsonl", mixed)
    dataset = data_of(config)
    assert dataset.scored_by is None
    assert not half & set(split(dataset, 0.5, 0).held_out.prompt_ids)
    code, said = run("fit", config, "--out", tmp_path / "router")
    assert (code, "scored by agreement" in said) == (0, False)


def test_synthetic_prompts_and_their_near_duplicates_are_never_held_out(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    rows = [{**row, "synthetic": "gen"} if number % 3 == 0 else row for number, row in enumerate(prompts())]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    dataset = data_of(config)
    written = {row["prompt_id"] for row in rows if "synthetic" in row}
    for by in ("prompt", "group"):
        sides = split(dataset, 0.5, 0, by)  # type: ignore[arg-type]  # a literal of two
        assert not written & set(sides.held_out.prompt_ids)
        assert len(sides.held_out) > 10
    code, said = run("check", config)
    assert code == 0
    assert "gen wrote 80 of the prompts" in said
    assert "never held out" in said


def test_check_counts_faulty_answers_apart_from_wrong_ones(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    rows = outcomes(prompts())
    of_fr = [row for row in rows if row["expert"] == "fr"]
    zeros = [row for row in of_fr if row["score"] == 0.0]
    for row, fault in zip(zeros, ["truncated"] * 5 + ["refused"] * 4 + ["unparsed"] * 3, strict=False):
        row["fault"] = fault
    next(row for row in of_fr if row["score"] == 1.0)["fault"] = "truncated"  # right all the same
    write_jsonl(tmp_path / "outcomes.jsonl", rows)
    assert data_of(config).provenance.faults["fr"] == {"truncated": 5, "refused": 4, "unparsed": 3}
    code, said = run("check", config)
    line = next(one for one in said.splitlines() if "fr " in one)
    cells = [cell.strip() for cell in line.replace("┃", "│").split("│")]
    assert (code, cells[4:8]) == (0, [str(len(zeros) - 12), "5", "4", "3"])


def test_a_file_without_marks_is_read_as_before(tmp_path: Path) -> None:
    dataset = data_of(write_run(tmp_path))
    assert not dataset.only_trains.any()
    assert (dataset.measures == dataset.has_all_outcomes).all()
    assert json.dumps({name: dict(found) for name, found in dataset.provenance.faults.items()}).count("{}") == 4
