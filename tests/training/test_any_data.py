"""Whatever data people bring, `fit` ends in an artifact or in a sentence."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from typer.testing import CliRunner

from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.router import Router
from router_training.cli import app
from tests.examples import examples
from tests.training.any_data import Drawn, data_sets, write

SHIPPED, WRONG_INPUT, REFUSED = 0, 2, 3
runner = CliRunner()


def run(*arguments: str | float | Path) -> tuple[int, str]:
    """Exit code and what was said; any error but the one that ends a command is the test's."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def route_one(folder: Path) -> None:
    """Under every objective, shipped or not."""
    loaded = artifacts.load(folder)
    entries = {n: entry.model_copy(update={"shipped": True}) for n, entry in loaded.manifest.objectives.items()}
    router = Router(replace(loaded, manifest=loaded.manifest.model_copy(update={"objectives": entries})))
    there = dict.fromkeys(router.expert_names, Availability("device", 0.0))
    for objective in entries:
        decision = router.route(Conversation.of_prompt("sorting 3"), RouteOptions(objective=objective), there)
        assert decision.expert in loaded.expert_names
        assert all(0.0 <= one.expected_score <= 1.0 for one in decision.ranking if one.expected_score is not None)
        assert sum(decision.probabilities.values()) == pytest.approx(1.0)


def fits_or_says_why(drawn: Drawn) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, out = write(drawn, folder), folder / "router"
        checked, said = run("check", config)
        assert checked in (SHIPPED, WRONG_INPUT), said
        code, said = run("fit", config, "--out", out)
        assert code in (SHIPPED, WRONG_INPUT, REFUSED), said
        if code == WRONG_INPUT:
            assert said.strip(), "an exit without a word"
            assert said.strip().count("\n") == 0, said
            assert not out.exists()
            # n-grams are counted by `fit` alone
            assert checked == WRONG_INPUT or "have no n-gram in common" in said, f"check found nothing; fit said {said}"
            return
        assert checked == SHIPPED
        fitted = out if code == SHIPPED else out.with_name("router.refused")
        route_one(fitted)
        follow_up(drawn, folder, fitted)


def follow_up(drawn: Drawn, folder: Path, fitted: Path) -> None:
    """One of the commands that read an artifact, with the data that it was trained on."""
    ending = "parquet" if drawn.parquet else "jsonl"
    data = ("--prompts", folder / f"prompts.{ending}", "--outcomes", folder / f"outcomes.{ending}")
    numbers = folder / "numbers.json"
    budget = ("--out", folder / "new", "--budget", max(drawn.sizes))
    words: tuple[str | float | Path, ...] = (
        ("report", fitted),
        ("probe", fitted),
        ("evaluate", fitted, *data, "--json", numbers, "--resamples", 100),
        ("map", fitted, *budget),
        ("map", fitted, *budget, *data),
    )[drawn.seed % 5]
    code, said = run(*words)
    assert code == 0 or (words[0] == "probe" and "has no probes" in said), said
    if words[0] == "evaluate":
        assert_within_0_and_1(json.loads(numbers.read_text(encoding="utf-8")))
    if words[0] == "map":
        route_one(folder / "new")


def assert_within_0_and_1(evaluation: dict[str, Any]) -> None:
    scores = [*evaluation["experts"].values(), evaluation["random"], evaluation["oracle"], evaluation["aiq"]]
    scores += [row["score"] for row in (evaluation["router"], *evaluation["by_budget"], *evaluation["risk_coverage"])]
    scores += [row[key] for row in evaluation["worst_prompts"] for key in ("score", "expected_score", "better_score")]
    scores += [row["score"] for key in ("hull", "curve") for row in evaluation[key]]
    scores += [evaluation["flip_rate"], evaluation["category_ceiling"] or 0.0, evaluation["router"]["ood_share"]]
    scores += [share for row in evaluation["confusion"] for share in row]
    assert all(0.0 <= score <= 1.0 for score in scores)


@examples(20)
@given(data_sets())
def test_fit_ends_in_an_artifact_or_a_sentence(drawn: Drawn) -> None:
    fits_or_says_why(drawn)


@pytest.mark.long
@examples(150)  # the long profile tries ten times as many
@given(data_sets())
def test_fit_ends_in_an_artifact_or_a_sentence_for_many_more(drawn: Drawn) -> None:
    fits_or_says_why(drawn)
