from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from coe_server.routing import artifact as artifacts
from router_training import in_silence
from router_training.cli import app
from router_training.config import read_config
from router_training.fit import fit
from router_training.report.charts import GAP, LINE, Label, along, leave_group_out_bars, placed
from router_training.report.page import page
from router_training.report.tables import cut, worst_prompts_table
from tests.training.recorded import prompts, write_jsonl, write_run

runner = CliRunner()
MARKUP = "<script>alert(1)</script> & so on"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on prompts with markup in them."""
    folder = tmp_path_factory.mktemp("run")
    config = write_run(folder, per_category=200)  # so many that some are answered wrongly
    rows = prompts(200)
    write_jsonl(folder / "prompts.jsonl", [{**row, "prompt": f"{MARKUP} {row['prompt']}"} for row in rows])
    fit(read_config(config), folder / "router", force=True, track=in_silence)
    return folder / "router"


class Page(HTMLParser):
    """Which elements there are, whether each is closed, and what they point at."""

    VOID = frozenset({"meta", "br", "use", "path", "line", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href"}:
                self.links.append(value or "")
            if name == "aria-label" and tag == "svg":
                self.labels.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_stands_alone_and_is_well_formed(trained: Path) -> None:
    text = (trained / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert found.open == []
    assert "script" not in found.seen
    assert all(link.startswith("#") for link in found.links)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"' )>]+", text)) <= namespaces


def test_every_chart_says_in_words_what_it_shows_and_takes_its_colours_from_the_page(trained: Path) -> None:
    text = (trained / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert found.seen.count("svg") == 4 == len(found.labels)
    assert not re.findall(r"#[0-9a-f]{6}", text[text.index("<body>") :].replace("#ffffff", ""))
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_what_was_measured(trained: Path) -> None:
    words = Page((trained / "report.html").read_text(encoding="utf-8")).words
    evaluation = json.loads((trained / "evaluation.json").read_text())
    manifest = artifacts.load(trained).manifest
    for name, score in evaluation["experts"].items():
        assert name in words
        assert f"{100 * evaluation['router']['score']:.1f}" in words
        assert 0.0 <= score <= 1.0
    for needed in (*manifest.categories, *manifest.objectives, manifest.data_hash, "Model card", "seed"):
        assert needed in words


def test_prompts_are_shown_as_text_and_only_their_beginning(trained: Path) -> None:
    text = (trained / "report.html").read_text(encoding="utf-8")
    worst = json.loads((trained / "evaluation.json").read_text())["worst_prompts"]
    assert worst
    assert MARKUP in Page(text).words
    assert "<script>" not in text
    long = worst_prompts_table([{**worst[0], "text": "ab " * 1000}])
    assert "ab " * 60 in long
    assert "ab " * 70 not in long
    assert len(cut("x" * 1000)) == 200


def test_texts_can_be_left_out_everywhere(tmp_path: Path) -> None:
    config = read_config(write_run(tmp_path, report={"texts": False}))
    fit(config, tmp_path / "router", force=True, track=in_silence)
    held_out = [row["prompt"] for row in prompts(60)]
    for path in (tmp_path / "router").iterdir():
        content = path.read_bytes().decode("utf-8", "replace")
        assert not [text for text in held_out if text in content], path


def test_the_command_writes_the_page_anew(trained: Path) -> None:
    before = (trained / "report.html").read_text(encoding="utf-8")
    (trained / "report.html").unlink()
    result = runner.invoke(app, ["report", str(trained)])
    assert result.exit_code == 0, result.output
    assert (trained / "report.html").read_text(encoding="utf-8") == before


def test_an_artifact_without_an_evaluation_is_named(trained: Path, tmp_path: Path) -> None:
    artifacts.save(artifacts.load(trained), artifacts.read_held_out(trained), None, tmp_path / "bare")
    result = runner.invoke(app, ["report", str(tmp_path / "bare")])
    assert result.exit_code == 2
    assert "no evaluation" in result.output


def test_a_page_needs_neither_labels_nor_groups(trained: Path) -> None:
    evaluation = json.loads((trained / "evaluation.json").read_text())
    calibration = {**evaluation["calibration"], "ece": None}
    bare = {**evaluation, "leave_group_out": None, "reliability": [], "calibration": calibration, "worst_prompts": []}
    bare["confusion"] = np.zeros((4, 4)).tolist()
    text = page(artifacts.load(trained), bare)
    assert Page(text).seen.count("svg") == 2


@pytest.mark.parametrize("group", ["商品", "🪴 plants", r"$5 or $6 \frac", "<b>&"])
def test_a_group_may_have_any_name(group: str) -> None:
    outside = {"gain": 0.1, "gain_ci95": [0.0, 0.2], "per_group": {group: 0.1}}
    found = Page(leave_group_out_bars(outside))
    assert group in found.words
    assert group in found.labels[0]


spots = st.tuples(st.floats(0, 600), st.floats(0, 300))


@given(st.lists(st.tuples(spots, st.text("abc", min_size=1, max_size=12)), min_size=1, max_size=4))
def test_few_names_far_apart_cover_nothing(drawn: list[tuple[tuple[float, float], str]]) -> None:
    labels = [Label(100.0 + at * 250.0, y, text) for at, ((_, y), text) in enumerate(drawn)]
    assert placed(labels, (0.0, 2000.0)) == [(GAP, 0.0)] * len(labels)


def test_names_of_neighbours_move_apart_and_away_from_lines() -> None:
    labels = [Label(100.0, 100.0, "one"), Label(101.0, 100.0, "two")]
    (_, first), (_, second) = placed(labels, (0.0, 500.0))
    assert abs(first - second) >= LINE or first == second == 0.0
    under_a_line = placed([Label(100.0, 100.0, "one")], (0.0, 500.0), along([(110.0, 100.0), (400.0, 100.0)]))
    assert under_a_line != [(GAP, 0.0)]
    assert len(along([(0.0, 0.0), (60.0, 0.0)])) == 11
