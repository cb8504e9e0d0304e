"""The recipes of CONTRIBUTING.md are followed on a copy of the code, and what they add works."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.reader import ROOT, Reader, reading
from tests.patience import PATIENCE_SECONDS

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
FOLDERS = ("coe_server", "router_training", "configs", "docs")
_STEP = re.compile(
    r"^ *(?:\d\. )? *`(?P<path>[\w/.]+)`, "
    r"(?:new file:|(?P<place>before|after) `(?P<anchor>[^`]+)`:|`(?P<old>[^`]+)` becomes `(?P<new>[^`]+)`)"
    r"(?:\n\n(?P<indent> *)```\w+\n(?P<lines>.*?)^ *```$)?",
    re.MULTILINE | re.DOTALL,
)
pytestmark = pytest.mark.timeout(600)  # programs start, each with its imports
SIMULATED = "engine: simulated, weights_bytes: 1MiB, start_seconds: 0, ttft_seconds: 0, tokens_per_second: 1e5"


@dataclass(frozen=True)
class Step:
    """One change of one file: a new file, lines beside the line with an anchor, or some text in place of another."""

    path: str
    place: str | None
    anchor: str | None
    old: str | None
    new: str | None
    lines: str

    def apply(self, root: Path) -> None:
        file = root / self.path
        if self.old is not None:
            text = file.read_text()
            assert text.count(self.old) == 1, f"{self.path} has {text.count(self.old)} times {self.old!r}"
            file.write_text(text.replace(self.old, str(self.new)))
        elif self.anchor is not None:
            lines = file.read_text().splitlines(keepends=True)
            places = [number for number, line in enumerate(lines) if self.anchor in line]
            assert len(places) == 1, f"{self.path} has {len(places)} lines with {self.anchor!r}"
            at = places[0] + (self.place == "after")
            file.write_text("".join([*lines[:at], self.lines, *lines[at:]]))
        else:
            assert not file.exists(), f"{self.path} is there already"
            file.write_text(self.lines)


def recipe(title: str) -> list[Step]:
    section = CONTRIBUTING.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    steps = [
        Step(found["path"], found["place"], found["anchor"], found["old"], found["new"], _as_written(found))
        for found in _STEP.finditer(section)
    ]
    told = section.count("```") // 2 + section.count("` becomes `")
    assert len(steps) == told, f"{title}: {told} changes are shown, {len(steps)} of them can be read"
    return steps


def _as_written(found: re.Match[str]) -> str:
    """The lines of the block, without the block's own indentation."""
    lines = (found["lines"] or "").splitlines(keepends=True)
    return "".join(line.removeprefix(found["indent"] or "") for line in lines)


@pytest.fixture
def follow(tmp_path: Path) -> Callable[[str], Path]:
    """Follows a recipe on a copy, and returns the copy's folder."""

    def followed(title: str) -> Path:
        copy = tmp_path / "copy"
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for step in recipe(title):
            step.apply(copy)
        return copy

    return followed


def on_the_copy(reader: Reader, copy: Path) -> Reader:
    reader.environment["PYTHONPATH"] = str(copy)
    return reader


def unchanged(content: str, port: int) -> str:
    return f"http: {{port: {port}}}\n{content}"


def serving(reader: Reader, config: str) -> None:
    (reader.folder / "serve.yaml").write_text(unchanged(config, reader.port))
    reader.serve("coe serve serve.yaml")


def get(reader: Reader, path: str, body: dict[str, object] | None = None) -> str:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(
        f"http://127.0.0.1:{reader.port}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return str(answer.read().decode())


def test_the_engine_of_the_recipe_answers_a_request(follow: Callable[[str], Path], tmp_path: Path) -> None:
    copy = follow("Add an engine")
    with reading(tmp_path, unchanged) as reader:
        serving(on_the_copy(reader, copy), 'experts:\n  - {name: parrot, engine: echo, prefix: "you said: "}\n')
        question = {"model": "parrot", "messages": [{"role": "user", "content": "hello there"}]}
        answer = json.loads(get(reader, "/v1/chat/completions", question))
    assert answer["choices"][0]["message"]["content"] == "you said: hello there"


def test_a_wrong_engine_is_told_the_new_one_too(follow: Callable[[str], Path], tmp_path: Path) -> None:
    copy = follow("Add an engine")
    (tmp_path / "serve.yaml").write_text("experts:\n  - {name: parrot, engine: ehco}\n")
    with reading(tmp_path, unchanged) as reader:
        environment = on_the_copy(reader, copy).environment
        done = subprocess.run(
            ["coe", "validate", "serve.yaml"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert done.returncode == 1
    assert "echo" in done.stderr + done.stdout


def test_the_metric_of_the_recipe_is_served_and_documented(follow: Callable[[str], Path], tmp_path: Path) -> None:
    copy = follow("Add a metric")
    with reading(tmp_path, unchanged) as reader:
        experts = "".join(f"  - {{name: {name}, {SIMULATED}}}\n" for name in ("a", "b", "c"))
        serving(on_the_copy(reader, copy), f"memory: {{device: 3MiB, host: 3MiB}}\nexperts:\n{experts}")
        metrics = get(reader, "/metrics")
    assert "\ncoe_experts 3.0\n" in metrics
    assert re.search(r"^\| `coe_experts` \| gauge \|  \| ", (copy / "docs/operate.md").read_text(), re.MULTILINE)


def test_the_feature_of_the_recipe_is_fitted_saved_and_loaded(follow: Callable[[str], Path], tmp_path: Path) -> None:
    copy = follow("Add a kind of feature")
    write_outcomes(tmp_path)
    (tmp_path / "train.yaml").write_text(
        "data: {prompts: [prompts.jsonl], outcomes: [outcomes.jsonl]}\n"
        "experts: [{name: a, active_params_b: 1}, {name: b, active_params_b: 1}]\n"
        "features: {kind: letters, model: letters, ngrams: false}\n"
    )
    (tmp_path / "serve.yaml").write_text(
        "memory: {device: 2MiB, host: 2MiB}\nrouter: {artifact: router}\n"
        f"experts: [{{name: a, {SIMULATED}}}, {{name: b, {SIMULATED}}}]\n"
    )
    with reading(tmp_path, unchanged) as reader:
        on_the_copy(reader, copy).run("coe-train fit train.yaml --out router --force")
        route = 'coe route serve.yaml "vyx wzyv xwv zywx vxz wvy" --json'
        reader.run(route)
    features = json.loads((tmp_path / "router/manifest.json").read_text())["features"]
    assert (features["kind"], features["dimensions"]) == ("letters", 26)
    decision = json.loads(reader.said[route])
    assert (decision["expert"], decision["category"]) == ("b", "late")
    assert decision["gate"]["inside"]


def write_outcomes(folder: Path) -> None:
    """Two categories that their letters tell apart, each with an expert that is right."""
    draw = random.Random(0)
    prompts, outcomes = [], []
    for number in range(160):
        category, letters, best = ("early", "abcde", "a") if number % 2 else ("late", "vwxyz", "b")
        words = " ".join("".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(6))
        name = f"p{number:03}"
        prompts.append({"prompt_id": name, "prompt": words, "category": category})
        outcomes += [{"prompt_id": name, "expert": one, "score": float(one == best)} for one in ("a", "b")]
    for file, rows in (("prompts", prompts), ("outcomes", outcomes)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
