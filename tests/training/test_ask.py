"""`coe-train ask`: which prompts to label, and which to collect outcomes for."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from router_training.ask import Seen, different, worth_collecting, worth_labelling
from router_training.cli import app
from tests.routing.test_own_routes import PLAIN, written
from tests.training.recorded import write_jsonl


def seen(name: str, law: float, label: str | None = None, *, inside: bool = True, text: str | None = None) -> Seen:
    return Seen(name, text or f"prompt {name} about {name}", label, {"law": law, "code": 1.0 - law}, inside)


def test_the_least_certain_prompts_without_a_label_come_first() -> None:
    given = [seen("sure", 0.99), seen("torn", 0.51), seen("labelled", 0.5, "law"), seen("strange", 0.9, inside=False)]
    assert [one.prompt_id for one in worth_labelling(given, 3)] == ["strange", "torn", "sure"]
    assert [one.prompt_id for one in worth_labelling(given, 1)] == ["strange"]


def test_near_duplicates_are_asked_for_once() -> None:
    given = [seen(f"p{n}", 0.5, text="how do I write a will for my aunt in Spain") for n in range(3)]
    assert [one.prompt_id for one in different(given, 3)] == ["p0"]


def test_outcomes_are_wanted_where_traffic_is_high_and_few_are_known() -> None:
    given = [seen(f"law-{n}", 0.9) for n in range(10)] + [seen(f"code-{n}", 0.1) for n in range(10)]
    assert {one.top[0] for one in worth_collecting(given, {"law": 0, "code": 1000}, 5)} == {"law"}
    both = worth_collecting(given, {"law": 0, "code": 0}, 6)
    assert sorted(one.top[0] for one in both) == ["code"] * 3 + ["law"] * 3
    assert len(worth_collecting(given, {}, 100)) == 20


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in words])
    return result.exit_code, result.output


def test_the_command_reads_an_export_and_shows_both_lists(tmp_path: Path) -> None:
    assert run("draft", written(tmp_path, PLAIN), "--out", tmp_path / "router")[0] == 0
    rows = [
        {"prompt_id": "a", "messages": [{"role": "user", "content": "why does this python loop hang"}]},
        {"prompt_id": "b", "messages": [{"role": "user", "content": "zyx qwv unheard of things"}]},
        {"prompt_id": "c", "prompt": "Can my landlord keep my deposit", "category": "law"},
    ]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)
    code, said = run("ask", tmp_path / "router", "--prompts", prompts, "--count", 1)
    assert code == 0, said
    label, collect = said.split("worth outcomes")
    assert "unheard" in label
    assert "landlord" not in label
    assert "loop" in collect or "landlord" in collect
    known = write_jsonl(tmp_path / "outcomes.jsonl", [{"prompt_id": "a", "expert": "coder", "score": 1.0}])
    said = run("ask", tmp_path / "router", "--prompts", prompts, "--outcomes", known)[1]
    assert "python loop" not in said.split("worth outcomes")[1]


def test_prompts_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    assert run("draft", written(tmp_path, PLAIN), "--out", tmp_path / "router")[0] == 0
    code, said = run("ask", tmp_path / "router", "--prompts", tmp_path / "none.jsonl")
    assert (code, "no such file" in said) == (2, True)


def test_where_there_is_nothing_to_ask_for_the_command_says_why(tmp_path: Path) -> None:
    assert run("draft", written(tmp_path, PLAIN), "--out", tmp_path / "router")[0] == 0
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt_id": "a", "prompt": "Can I sue", "category": "law"}])
    known = write_jsonl(tmp_path / "outcomes.jsonl", [{"prompt_id": "a", "expert": "coder", "score": 1.0}])
    code, said = run("ask", tmp_path / "router", "--prompts", prompts, "--outcomes", known)
    assert code == 0
    assert said.splitlines() == [
        "Nothing to label: every prompt has a category.",
        "Nothing to collect: every prompt has outcomes or is in the list above.",
    ]
