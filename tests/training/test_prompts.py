"""`coe-train prompts` against a real endpoint on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from router_training.cli import app
from router_training.collect.synthetic import prompts_in, request
from tests.training.stand_in_endpoint import Body, Says, StandIn, endpoint

ROUTES = {
    "routes": {
        "code": {"expert": "coder", "examples": ["Sort a list in python", "Write a SQL join"]},
        "tickets": {"expert": "small", "match": {"words": "ticket"}},
    },
    "default": {"expert": "generalist", "examples": ["Tell me a joke"]},
}


def written(stand_in: StandIn, folder: Path, *options: object) -> tuple[int, str]:
    (folder / "routes.yaml").write_text(yaml.safe_dump(ROUTES))
    words = ("prompts", folder / "routes.yaml", "--from", "coder", "--base-url", stand_in.base_url)
    result = CliRunner().invoke(app, [str(one) for one in (*words, "--out", folder / "p.jsonl", *options)])
    return result.exit_code, result.output


def test_an_expert_writes_prompts_that_are_marked_and_differ(tmp_path: Path) -> None:
    def says(body: Body, times: int) -> Says:
        del times
        kind = "joke" if "everyday" in body["messages"][0]["content"] else "program"
        subjects = ["bears", "cats", "dogs", "eels"]
        lines = [f"{n}. Write a {kind} about {subject}" for n, subject in enumerate(subjects, 1)]
        return Says("\n".join(["Here are some prompts:", *lines, "- Write a SQL join", lines[0]]))

    with endpoint(says) as stand_in:
        code, said = written(stand_in, tmp_path, "--per-category", 4)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert code == 0, said
    assert [row["category"] for row in rows] == ["code"] * 4 + ["default"] * 4
    assert {row["synthetic"] for row in rows} == {"coder"}
    assert len({row["prompt_id"] for row in rows}) == 8
    assert rows[0]["prompt"] == "Write a program about bears"
    assert not any(row["prompt"] in {"Write a SQL join", "Tell me a joke"} for row in rows)
    assert "8 prompts, marked synthetic" in said


def test_too_few_different_prompts_end_after_a_bounded_number_of_requests(tmp_path: Path) -> None:
    with endpoint(lambda body, times: Says("Write a program about bears")) as stand_in:
        code, said = written(stand_in, tmp_path, "--per-category", 20)
    assert code == 4
    assert "code: fewer than the 20 asked for" in said
    assert len(stand_in.bodies) == 6  # three for each of two routes
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 1  # the default's is a near-duplicate of it


def test_an_expert_that_writes_nothing_is_told_and_no_file_is_left(tmp_path: Path) -> None:
    with endpoint(lambda body, times: Says("I'm sorry, but I can't help with that.")) as stand_in:
        code, said = written(stand_in, tmp_path, "--per-category", 2)
    assert (code, "coder wrote no prompt" in said) == (2, True)
    assert not (tmp_path / "p.jsonl").exists()


def test_lines_lose_list_marks_and_headings() -> None:
    said = 'Sure, here you go:\n1. "First one"\n2) Second one\n* Third\n\n\u2022 Fourth\n12 monkeys: who directed it?'
    assert prompts_in(said) == ["First one", "Second one", "Third", "Fourth", "12 monkeys: who directed it?"]


@pytest.mark.parametrize(
    "said",
    [
        '["Sort a list", "Say \\"hello\\" in C:"]',
        'Here are two prompts:\n\n[\n  "Sort a list",\n  "Say \\"hello\\" in C:"\n]\n\nI hope they help!',
        '```json\n["Sort a list",\n "Say \\"hello\\" in C:"]\n```',
        '{"prompts": ["Sort a list", "Say \\"hello\\" in C:"]}',
        '[{"prompt": "Sort a list"}, {"id": 2, "prompt": "Say \\"hello\\" in C:"}]',
        '{"prompt": "Sort a list"}\n{"prompt": "Say \\"hello\\" in C:"}',
        '```json\n[\n  "Sort a list",\n  "Say \\"hello\\" in C:",\n  "Rewri',
    ],
)
def test_a_list_in_json_is_read_as_one_also_in_a_fence_or_cut_off(said: str) -> None:
    assert prompts_in(said) == ["Sort a list", 'Say "hello" in C:']


def test_json_within_a_prompt_makes_no_list() -> None:
    said = '["a", "b"] in python: how do I sort it?\n{"a": "b"} is what?\nWhat does [1, 2] mean?'
    assert prompts_in(said) == said.splitlines()
    assert prompts_in('["a", 1, [], {}, {"prompt": 2}, " "]') == ["a"]
    assert prompts_in("[" * 100_000) == []


def test_lines_of_a_fence_are_no_prompts() -> None:
    assert prompts_in("```text\nFirst one\nSecond one\n```") == ["First one", "Second one"]


def test_each_request_shows_other_examples() -> None:
    examples = [f"example {n}" for n in range(15)]
    assert "example 0\n" in request("code", "programming", examples, 5, 0)
    assert "- example 10\n" in request("code", None, examples, 5, 1)
    assert "(programming)" in request("code", "programming", examples, 5, 0)
