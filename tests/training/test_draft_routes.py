from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coe_server.routing.router import Router
from router_training.cli import app
from router_training.languages import language_of
from tests.routing.test_own_routes import PLAIN, ask, written


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output


def test_a_draft_is_an_artifact_and_says_what_it_is_worth(tmp_path: Path) -> None:
    code, said = run("draft", written(tmp_path, PLAIN), "--out", tmp_path / "router")
    assert code == 0
    assert "left out, " in said
    assert "embeddings tell few examples apart better" in said
    assert "Can my landlord keep" not in said
    assert ask(Router.load(tmp_path / "router"), "a python function with a loop").expert == "coder"
    assert run("probe", tmp_path / "router")[0] == 2  # there are none


def test_show_prints_where_each_example_would_go(tmp_path: Path) -> None:
    said = run("draft", written(tmp_path, PLAIN), "--out", tmp_path / "router", "--show")[1]
    assert "would go to" in said
    assert "Can my landlord keep" in said
    assert "English" in said.split("language (guessed)")[1]


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    code, said = run("draft", written(tmp_path, {**PLAIN, "default": {}}), "--out", tmp_path / "router")
    assert (code, "set either expert or experts" in said) == (2, True)
    assert not (tmp_path / "router").exists()


DEMO = Path(__file__).parents[2] / "demo/data"


def demo_routes(folder: Path) -> Path:
    """Three examples of each of the demo's topics, and the experts' sizes."""
    examples: dict[str, list[str]] = {}
    for line in (DEMO / "train.prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        examples.setdefault(row["category"], []).append(row["prompt"])
    routes = {
        topic: {"expert": "generalist" if topic == "facts" else topic, "examples": texts[::70]}
        for topic, texts in examples.items()
    }
    sizes = {name: {"active_params_b": 0.0007} for name in ("french", "python", "units", "sql")}
    experts = {**sizes, "generalist": {"active_params_b": 0.0025}}
    return written(folder, {"routes": routes, "default": "generalist", "experts": experts})


def test_with_outcomes_a_draft_hands_over_what_its_experts_do_not_know(tmp_path: Path) -> None:
    files = ("--prompts", DEMO / "held_out.prompts.jsonl", "--outcomes", DEMO / "held_out.outcomes.jsonl")
    code, said = run("draft", demo_routes(tmp_path), "--out", tmp_path / "router", *files)
    assert code == 0, said
    assert "handover by" in said
    assert "; shipped" in said
    plain = run("draft", demo_routes(tmp_path), "--out", tmp_path / "plain")
    assert plain[0] == 0
    router, without = Router.load(tmp_path / "router"), Router.load(tmp_path / "plain")
    assert set(router.artifact.manifest.certainty_models) == set(router.expert_names)
    assert without.artifact.manifest.certainty is None
    assert ask(router, "Say my pretty bags in French").expert == ask(without, "Say my pretty bags in French").expert


def test_outcomes_without_log_probabilities_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    outcomes = tmp_path / "o.jsonl"
    rows = [json.loads(line) for line in (DEMO / "held_out.outcomes.jsonl").read_text().splitlines()]
    plain = ({key: row[key] for key in ("prompt_id", "expert", "score")} for row in rows)
    outcomes.write_text("".join(json.dumps(row) + "\n" for row in plain))
    files = ("--prompts", DEMO / "held_out.prompts.jsonl")
    code, said = run("draft", demo_routes(tmp_path), "--out", tmp_path / "router", *files, "--outcomes", outcomes)
    assert (code, "no expert has 30 outcomes with log-probabilities" in said) == (2, True)
    assert not (tmp_path / "router").exists()
    code, said = run("draft", demo_routes(tmp_path), "--out", tmp_path / "router", *files)
    assert (code, "--prompts and --outcomes belong together" in said) == (2, True)


@pytest.mark.parametrize("name", ["router", "other"])
def test_the_same_file_makes_the_same_router(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, PLAIN)
    for folder in ("router", name):
        assert run("draft", path, "--out", tmp_path / folder)[0] == 0
    assert Router.load(tmp_path / "router").version == Router.load(tmp_path / name).version


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the notice period for an employee?", "English"),
        ("Wie lange ist die Kündigungsfrist für einen Mitarbeiter?", "German"),
        ("Quelle est la durée du préavis pour un salarié ?", "French"),
        ("¿Cuál es el plazo de preaviso para un empleado?", "Spanish"),
        ("有給休暇は何日ですか", "Japanese"),
        ("Какой срок уведомления?", "Cyrillic"),
        ("3x^2 = 7", "other"),
        ("12 + 7", "other"),
    ],
)
def test_the_language_of_an_example_is_guessed(text: str, language: str) -> None:
    assert language_of(text) == language
