from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from coe_server.errors import ConfigError
from router_training.collect.settings import (
    AskedExpert,
    CollectConfig,
    ExactSettings,
    RequestSettings,
    ScorerSettings,
    read_collect_config,
)

EXAMPLE = Path(__file__).parents[3] / "configs" / "collect.yaml"
LEAST: dict[str, Any] = {"experts": [{"name": "a"}, {"name": "b"}], "scorer": {"kind": "exact"}}
PAIRWISE = {"kind": "judge", "mode": "pairwise", "model": "m", "reference_expert": "a"}
SCORERS: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(get_args(ScorerSettings)[0])
}


def written(folder: Path, config: object) -> Path:
    path = folder / "collect.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def parts() -> list[dict[str, Any]]:
    """The example as it is, and every scorer that stands in its comments."""
    text = EXAMPLE.read_text()
    others = text.split("\n# scorer:\n")[1:]
    return [yaml.safe_load(text), *(yaml.safe_load("scorer:\n" + other.replace("\n# ", "\n")[2:]) for other in others)]


def test_the_example_names_every_key_and_no_other() -> None:
    first, *others = parts()
    assert set(first) == set(CollectConfig.model_fields)
    assert set().union(*first["experts"]) == set(AskedExpert.model_fields)
    assert set(first["request"]) == set(RequestSettings.model_fields)
    shown = {scorer["kind"]: set(scorer) for scorer in (first["scorer"], *(other["scorer"] for other in others))}
    assert shown == {kind: set(model.model_fields) for kind, model in SCORERS.items()}


def test_every_key_of_the_example_says_what_it_does() -> None:
    lines = [line.removeprefix("# ") for line in EXAMPLE.read_text().splitlines()]
    for line in lines:
        is_key = re.match(r"(  - |  |    )?[a-z_]+: \S", line)
        assert not is_key or " # " in line or line == "  - name: hosted", line


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    first, *others = parts()
    example = read_collect_config(written(tmp_path, first))
    assert isinstance(example.scorer, ExactSettings)
    plain = CollectConfig.model_validate({"experts": example.experts, "scorer": example.scorer})
    assert example == plain
    for scorer in (other["scorer"] for other in others):
        model = SCORERS[scorer["kind"]].model_validate(scorer)
        examples = {"kind", "function", "mode", "reference_expert", "model", "families", "labels"} & set(scorer)
        assert model == SCORERS[scorer["kind"]].model_validate({key: scorer[key] for key in examples})


def test_a_template_is_relative_to_the_file(tmp_path: Path) -> None:
    config = read_collect_config(written(tmp_path, {**LEAST, "scorer": {**PAIRWISE, "template": "mine.txt"}}))
    assert config.scorer.template == tmp_path / "mine.txt"  # type: ignore[union-attr]  # it is a judge


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"export": []}, "export: there is no such key"),
        ({"experts": []}, "experts: "),
        ({"experts": [{"name": "a"}, {"name": "a"}]}, "a name occurs twice"),
        ({"experts": [{"name": "a", "modle": "x"}]}, r"experts.a.modle: there is no such key; did you mean 'model'\?"),
        ({"base_url": "localhost:8080"}, "base_url: .*'localhost:8080'"),
        ({"request": {"concurrency": 0}}, "request.concurrency: .*, not 0"),
        ({"request": {"retries": -1}}, "request.retries: .*, not -1"),
        ({"scorer": {"kind": "vibes"}}, "scorer.kind: 'vibes' is not one of exact, .*judge"),
        ({"scorer": {"kind": "exact", "ignore": ["colour"]}}, "scorer.ignore.0: 'colour' is not one of"),
        ({"scorer": {"kind": "choice", "letters": "abc"}}, "scorer.letters: .*'abc'"),
        ({"scorer": {"kind": "numeric", "tolerance": 1}}, r"there is no such key; did you mean '\w+_tolerance'\?"),
        ({"scorer": {"kind": "python", "function": "no_colon"}}, "scorer.function: .*'no_colon'"),
        ({"scorer": {**PAIRWISE, "reference_expert": "z"}}, "scorer.reference_expert: 'z' is not an expert"),
        ({"scorer": {"kind": "judge", "mode": "pairwise", "model": "m"}}, "reference_expert is required"),
        ({"scorer": {**PAIRWISE, "mode": "grade"}}, "reference_expert is required with mode pairwise and refused"),
        ({"scorer": {"kind": "judge", "mode": "grade"}}, "scorer.model: is missing"),
        (
            {"scorer": {"kind": "consensus", "families": {"q": ["a"]}}},
            "scorer.families.q: must have at least 2 entries",
        ),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_collect_config(written(tmp_path, {**LEAST, **change}))
    assert "\n" not in str(caught.value)
