from __future__ import annotations

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
