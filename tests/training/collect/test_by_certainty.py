"""The scorer `certainty`: scores from log-probabilities alone, calibrated by right answers where there are some."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from typer.testing import CliRunner

from router_training.cli import app
from router_training.data.dataset import read_dataset
from router_training.data.first_tokens import COLUMN_OF
from router_training.data.provenance import ALONE, CERTAINTY, SCORED_BY
from tests.training.recorded import outcomes, prompts, write_jsonl, write_run
from tests.training.stand_in_endpoint import Body, Says, endpoint
from tests.training.test_collect import Files, config, run, written

DEMO = Path(__file__).parents[3] / "demo/data"
EXPERTS = ("french", "python", "units", "sql", "generalist")
HOME = {"facts": "generalist"}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_demos_mapping_is_found_without_one_label(tmp_path: Path) -> None:
    asked = rows_of(DEMO / "held_out.prompts.jsonl")[::3]
    text = {row["prompt_id"]: row["prompt"] for row in asked}
    means = {
        (row["expert"], text[row["prompt_id"]]): row["logprob_mean"]
        for row in rows_of(DEMO / "held_out.outcomes.jsonl")
        if row["prompt_id"] in text
    }

    def replayed(body: Body, times: int) -> Says:
        return Says("words", logprobs=(means[body["model"], body["messages"][-1]["content"]],))

    unlabelled = [{key: value for key, value in row.items() if key != "answer"} for row in asked]
    where = Files.of([write_jsonl(tmp_path / "prompts.jsonl", unlabelled)], tmp_path / "outcomes.jsonl", None)
    with endpoint(replayed) as stand_in:
        settings = config(stand_in, experts=[{"name": name} for name in EXPERTS], scorer={"kind": "certainty"})
        run(settings, where)
    assert {row["scored_by"] for row in written(where)} == {CERTAINTY}
    category = {row["prompt_id"]: row["category"] for row in asked}
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in written(where):
        scores[category[row["prompt_id"]]][row["expert"]].append(row["score"])
    best = {topic: max(found, key=lambda name: fmean(found[name])) for topic, found in scores.items()}
    assert best == {topic: HOME.get(topic, topic) for topic in best}
    assert len(best) == 5


def sure_or_not(body: Body, times: int) -> Says:
    """Right with -0.1 on two of three questions, wrong with -2; `b` gives no log-probabilities."""
    number = int(body["messages"][-1]["content"].split()[-1])
    right = number % 3 != 0
    logprobs = None if body["model"] == "b" else (-0.1 if right else -2.0,)
    return Says("right" if right else "wrong", logprobs=logprobs)


def test_right_answers_calibrate_the_others_and_are_not_marked(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": f"p{n}", "prompt": f"question {n}", **({"answer": "right"} if n < 60 else {})} for n in range(90)
    ]
    where = Files.of([write_jsonl(tmp_path / "prompts.jsonl", rows)], tmp_path / "outcomes.jsonl", None)
    scorer = {"kind": "certainty", "labels": {"kind": "exact"}}
    with endpoint(sure_or_not) as stand_in:
        tally = run(config(stand_in, scorer=scorer), where)
    found = {(row["expert"], row["prompt_id"]): row for row in written(where)}
    assert [found["a", f"p{n}"]["score"] for n in (0, 1, 59)] == [0.0, 1.0, 1.0]
    assert "scored_by" not in found["a", "p59"]
    assert found["a", "p60"]["scored_by"] == CERTAINTY
    assert found["a", "p60"]["score"] < 0.1
    assert found["a", "p61"]["score"] > 0.9
    assert ("b", "p59") in found
    assert ("b", "p60") not in found
    assert "b: 30 without an outcome: the expert gave no log-probabilities" in tally.problems
    assert read_dataset(where.prompts, [where.out], ["a", "b"]).scored_by is None


def test_without_labels_a_score_is_the_mean_probability_of_the_tokens(tmp_path: Path) -> None:
    where = Files.of(
        [write_jsonl(tmp_path / "prompts.jsonl", [{"prompt_id": "p", "prompt": "question 1"}])],
        tmp_path / "outcomes.jsonl",
        None,
    )
    with endpoint(sure_or_not) as stand_in:
        run(config(stand_in, experts=[{"name": "a"}], scorer={"kind": "certainty"}), where)
    (row,) = written(where)
    assert row["score"] == pytest.approx(0.9048, abs=1e-4)
    assert COLUMN_OF[1] in row


def test_nothing_ships_on_certainty_alone(tmp_path: Path) -> None:
    settings = write_run(tmp_path)
    write_jsonl(tmp_path / "outcomes.jsonl", [{**row, "scored_by": CERTAINTY} for row in outcomes(prompts())])
    done = CliRunner().invoke(app, ["fit", str(settings), "--out", str(tmp_path / "router")], terminal_width=300)
    assert (done.exit_code, ALONE[CERTAINTY] in done.output) == (3, True)
    report = (tmp_path / "router.refused" / "report.html").read_text()
    assert SCORED_BY[CERTAINTY].split(":")[0] in report[: report.index("<table")]
