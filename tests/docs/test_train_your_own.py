"""Two guides are followed to the letter: files are written and commands run, with simulated experts.

From prompts to a router that serves, and from what its users think to the next one.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.reader import ROOT, Reader, blocks, reading

GUIDE, FEEDBACK = ROOT / "docs/train-your-own.md", ROOT / "docs/feedback.md"
SPECIALIST = {"code": "coder", "sums": "maths", "talk": "generalist"}
PROMPTS_EACH = 60
pytestmark = pytest.mark.timeout(1200)  # a dozen programs start, each with its imports: minutes on a busy machine
FAST = (
    "engine: simulated, weights_bytes: 1MiB, start_seconds: 0.05, wake_seconds: 0.01, sleep_seconds: 0.01,"
    " ttft_seconds: 0, tokens_per_second: 1e5}"
)


def simulated(content: str, port: int) -> str:
    experts = re.sub(r"engine: vllm, .*\}$", FAST, content, flags=re.MULTILINE)
    return (
        experts.replace("memory:", f"http: {{port: {port}}}\nmemory:")
        .replace("70GiB", "4MiB")
        .replace("200GiB", "4MiB")
    )


def write_prompts(folder: Path) -> None:
    """Three kinds of prompts; each kind's specialist is right, and the generalist half the time on the others' too."""
    draw = random.Random(0)
    words = {
        "code": (
            "Write a function that",
            ["adds", "sorts", "reverses", "counts", "merges"],
            ["lists", "strings", "numbers", "trees"],
        ),
        "sums": ("Solve the equation where", ["x", "y", "z", "n"], ["plus", "minus", "times", "over"]),
        "talk": (
            "Tell me a story about",
            ["kings", "dragons", "sailors", "bakers"],
            ["mountains", "oceans", "castles", "winters"],
        ),
    }
    for kind, (beginning, first, second) in words.items():
        (folder / "prompts" / kind).mkdir(parents=True)
        for number in range(PROMPTS_EACH):
            prompt = f"{beginning} {draw.choice(first)} {draw.choice(second)} {draw.randint(0, 999)}"
            right = {SPECIALIST[kind], *(["generalist"] if draw.random() < 0.5 else [])}
            (folder / "prompts" / kind / f"{number:04}.txt").write_text(prompt + "\n")
            answers = "\n".join(f"{expert} answers: {prompt}" for expert in sorted(right))
            (folder / "prompts" / kind / f"{number:04}.answer").write_text(answers + "\n")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("guide")
    write_prompts(folder)
    with reading(folder, simulated) as reader:
        for block in blocks(GUIDE):
            reader.follow(block)
        reader.environment["ID"] = header(said_to(reader, "curl -sf -i"), "x-coe-decision-id")
        for block in blocks(FEEDBACK):
            if block.language == "sh":
                reader.follow(block)
        yield reader


def said_to(reader: Reader, beginning: str) -> str:
    (said,) = [said for line, said in reader.said.items() if line.startswith(beginning)]
    return said


def header(answer: str, name: str) -> str:
    (value,) = re.findall(rf"^{name}: (\S+)", answer, re.MULTILINE)
    return str(value)


def test_following_the_guide_ends_with_a_router_that_knows_its_experts(followed: Reader) -> None:
    answer = said_to(followed, "curl -sf -i")
    assert "x-coe-expert: coder" in answer
    assert "x-coe-category: code" in answer
    assert "coder answers: Write a function that adds two numbers" in answer
    assert said_to(followed, "coe route").startswith("coder, category code")


def test_the_guides_outcomes_are_whole(followed: Reader) -> None:
    rows = [json.loads(line) for line in (followed.folder / "outcomes.jsonl").read_text().splitlines()]
    assert len({(row["prompt_id"], row["expert"]) for row in rows}) == len(rows) == 3 * 3 * PROMPTS_EACH
    by_coder = [row["score"] for row in rows if row["expert"] == "coder"]
    assert sum(by_coder) == PROMPTS_EACH
    own = [json.loads(line) for line in (followed.folder / "own.jsonl").read_text().splitlines()]
    assert {row["score"] for row in own} == {1.0}


def test_the_numbers_the_guide_names_are_in_the_evaluation(followed: Reader) -> None:
    evaluation = json.loads((followed.folder / "artifacts/router/evaluation.json").read_text())
    rows = re.findall(r"^\| (`.*`) \|", GUIDE.read_text().partition("## 5")[2], re.MULTILINE)
    names = re.findall(r"`([\w.]+)`", "\n".join(rows))
    assert len(names) >= 8
    for name in names:
        key, _, inner = name.partition(".")
        assert key in evaluation
        assert not inner or inner in evaluation[key]
    assert json.loads((followed.folder / "measured.json").read_text())["router"]["gain"] > 0


def test_the_guides_new_budget_is_an_objective_of_the_new_artifact(followed: Reader) -> None:
    manifest = json.loads((followed.folder / "artifacts/router-tight/manifest.json").read_text())
    assert manifest["objectives"]["tight"]["active_params_b"] == 12.0


def test_the_rating_that_the_feedback_guide_gives_moves_the_answering_experts_score(followed: Reader) -> None:
    old, new = (score_of_coder(followed.folder / f"artifacts/{name}") for name in ("router", "rated"))
    assert new < old


def score_of_coder(artifact: Path) -> float:
    return float(json.loads((artifact / "manifest.json").read_text())["score"]["code"]["coder"]["score"])
