"""What a preset's thinking costs beside its base, from the output tokens of recorded answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from coe_server.errors import ConfigError
from router_training.collect.progress import ExpertTally, Outcome, Tally, cost_factor, show_cost_factors
from router_training.collect.settings import read_collect_config


def outcomes(name: str, *tokens: int | None) -> list[Outcome]:
    return [Outcome(f"p{number}", name, 1.0, count) for number, count in enumerate(tokens)]


def test_only_prompts_that_both_answered_and_counted_are_compared() -> None:
    thinker, base = outcomes("thinker", 300, 500, None, 900), outcomes("base", 100, 100, 100)
    assert cost_factor(thinker, base) == 4.0
    assert cost_factor(thinker[2:], base) is None
    assert cost_factor(thinker, outcomes("base", 0)) is None


def test_the_factor_is_told_as_the_line_that_the_training_config_takes(capsys: pytest.CaptureFixture[str]) -> None:
    tallies = {name: ExpertTally(outcomes(name, count)) for name, count in (("thinker", 345), ("base", 100))}
    show_cost_factors(Tally(tallies), {"thinker": "base"}, Console(width=200))
    told = capsys.readouterr().out
    assert told.startswith("thinker writes 3.45 times the tokens of base;")
    line = yaml.safe_load(told.partition("config: ")[2])
    assert line == {"name": "thinker", "of": "base", "cost_factor": 3.45}


def test_a_base_that_is_not_asked_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "collect.yaml"
    path.write_text("experts: [{name: a}, {name: b, of: gone}]\nscorer: {kind: exact}\n")
    with pytest.raises(ConfigError, match="b is of 'gone', which is not an expert"):
        read_collect_config(path)
    path.write_text("experts: [{name: a}, {name: b, of: a}]\nscorer: {kind: exact}\n")
    assert read_collect_config(path).bases == {"b": "a"}
