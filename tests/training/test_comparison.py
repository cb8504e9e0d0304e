from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from coe_server.errors import DatasetError
from router_training.cli import app
from router_training.comparison import JUDGED, compare, lines_of


def row(number: int, expert: str = "big", score: float | None = None, **changes: Any) -> dict[str, Any]:
    ratings = {} if score is None else {"score": score}
    return {
        "decision_id": f"d{number}",
        "router_version": "v1",
        "expert": expert,
        "ratings": ratings,
        "exploration": None,
        "shadow": {"router_version": "v2", "expert": "small", "category": "code"},
        "compared": None,
    } | changes


def drawn(number: int, expert: str, score: float) -> dict[str, Any]:
    draw = {
        "drawn": expert,
        "usual": "big",
        "probabilities": {"big": 0.7, "small": 0.3},
        "category": "code",
        "expected": 0.5,
        "conversation": f"d{number}",
    }
    return row(number, expert, score, exploration=draw)


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "feedback.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return file


def test_agreements_are_counted_and_disagreements_estimated_from_drawn_answers(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    rows = [row(n, "small", shadow={"router_version": "v2", "expert": "small", "category": "code"}) for n in range(5)]
    for number in range(10, 1_510):
        expert = "small" if chance.random() < 0.3 else "big"
        rows.append(drawn(number, expert, float(chance.random() < {"small": 0.8, "big": 0.5}[expert])))
    found = compare(written(tmp_path, rows))
    assert (found.decisions, found.agree) == (1_505, 5)
    (shadow,) = found.shadows
    assert (shadow.source, shadow.disagreements) == ("score", 1_500)
    assert shadow.interval is not None
    assert shadow.interval.low < 0.3 < shadow.interval.high
    assert shadow.interval.low > 0.0


def test_with_fewer_than_thirty_answers_of_the_shadows_expert_nothing_is_known(tmp_path: Path) -> None:
    rows = [drawn(n, "small", 1.0) for n in range(29)] + [drawn(100 + n, "big", 0.0) for n in range(100)]
    found = compare(written(tmp_path, rows))
    assert [one.interval for one in found.shadows] == [None]
    assert any("29 answers of its expert there: not known" in line for line in lines_of(found))


def test_answers_without_a_draw_tell_nothing_about_the_shadow(tmp_path: Path) -> None:
    found = compare(written(tmp_path, [row(n, "big", 1.0) for n in range(50)]))
    assert [(one.answers, one.interval) for one in found.shadows] == [(0, None)]


def test_compared_answers_are_paired(tmp_path: Path) -> None:
    pair = {"expert": "small", "score": 1.0, "own_score": 0.0}
    even = {"expert": "small", "score": 0.5, "own_score": 0.5}
    rows = [row(n, compared=pair if n % 2 else even) for n in range(40)]
    (shadow,) = compare(written(tmp_path, rows)).shadows
    assert (shadow.source, shadow.answers) == (JUDGED, 40)
    assert shadow.interval is not None
    assert shadow.interval.mean == pytest.approx(0.5)


def test_versions_that_served_stand_beside_each_other_by_source(tmp_path: Path) -> None:
    rows = [row(n, score=float(n % 2), shadow=None, router_version="v1+3") for n in range(40)]
    rows += [row(100 + n, shadow=None, router_version="v9", ratings={"thumbs": 1.0}) for n in range(10)]
    found = compare(written(tmp_path, rows))
    assert [(one.router_version, one.source, one.ratings) for one in found.served] == [
        ("v1", "score", 40),
        ("v9", "thumbs", 10),
    ]
    assert found.served[0].interval is not None
    assert found.served[1].interval is None


def test_the_command_prints_and_writes_the_same(tmp_path: Path) -> None:
    file = written(tmp_path, [drawn(n, "small", 1.0) for n in range(3)])
    ran = CliRunner().invoke(app, ["compare", str(file), "--json", str(tmp_path / "out.json")])
    assert ran.exit_code == 0, ran.output
    assert "not known (fewer than 30)" in ran.output
    assert json.loads((tmp_path / "out.json").read_text())["decisions"] == 3


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="coe journal export"):
        compare(written(tmp_path, [{"shadow": {"expert": "x"}, "expert": "y"}]))


DRAW = drawn(1, "big", 1.0)["exploration"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shadow": {}}, "shadow.expert: is missing"),
        ({"expert": None}, "expert: must be a string"),
        ({"decision_id": [1]}, "decision_id: must be a string"),
        ({"ratings": [1]}, "ratings: "),
        ({"ratings": {"score": float("nan")}}, "ratings.score: "),
        ({"ratings": {"score": float("inf")}}, "ratings.score: "),
        ({"ratings": {"score": 7}}, "ratings.score: must be at most 1, not 7"),
        ({"ratings": {"score": 10**400}}, "ratings.score: "),
        ({"ratings": {"score": None}}, "ratings.score: "),
        ({"exploration": "x"}, "exploration: "),
        ({"exploration": {**DRAW, "probabilities": [1]}}, "exploration.probabilities: "),
        ({"exploration": {**DRAW, "probabilities": {"big": "0.5"}}}, "exploration.probabilities.big: "),
        ({"exploration": {**DRAW, "conversation": [1]}}, "exploration.conversation: "),
        ({"compared": {"expert": "small"}}, "compared.score: is missing"),
    ],
)
def test_a_line_that_no_export_writes_is_refused_by_its_row(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(
        DatasetError, match=r"feedback.jsonl, row 2: .*feedback.jsonl of `coe journal export`"
    ) as caught:
        compare(written(tmp_path, [row(1), row(2) | changes]))
    assert sentence in str(caught.value)
