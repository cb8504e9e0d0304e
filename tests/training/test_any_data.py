"""Whatever data people bring, `fit` ends in an artifact or in a sentence."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from typer.testing import CliRunner

from coe_server.routing import artifact as artifacts
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.router import Router
from router_training.cli import app
from tests.training.any_data import Drawn, data_sets, write

SHIPPED, WRONG_INPUT, REFUSED = 0, 2, 3
runner = CliRunner()


def run(*arguments: str | Path) -> tuple[int, str]:
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
            assert checked == WRONG_INPUT, f"check found nothing, and fit said {said}"
            return
        assert checked == SHIPPED
        folder = out if code == SHIPPED else out.with_name("router.refused")
        route_one(folder)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data_sets())
def test_fit_ends_in_an_artifact_or_a_sentence(drawn: Drawn) -> None:
    fits_or_says_why(drawn)


@pytest.mark.long
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data_sets())
def test_fit_ends_in_an_artifact_or_a_sentence_for_many_more(drawn: Drawn) -> None:
    fits_or_says_why(drawn)
