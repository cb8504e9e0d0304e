from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from coe_server.errors import ConfigError
from router_training.config import TrainingConfig, read_config
from router_training.expert_settings import ExpertSettings
from router_training.measured_costs import measured_cost_factors

EXAMPLE = Path(__file__).parents[2] / "configs" / "train.yaml"
LEAST: dict[str, Any] = {
    "data": {"prompts": ["p.jsonl"], "outcomes": ["o.jsonl"]},
    "experts": [{"name": "a", "active_params_b": 1.0}],
}


def written(folder: Path, config: object) -> Path:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(prefix + name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= keys_of(inner, f"{prefix}{name}.")
    return found


def keys_in(value: object, prefix: str = "") -> set[str]:
    if not isinstance(value, dict):
        return set()
    return {f"{prefix}{key}" for key in value} | {
        inner for key, part in value.items() for inner in keys_in(part, f"{prefix}{key}.")
    }


def test_the_example_names_every_key_and_no_other() -> None:
    raw = yaml.safe_load(EXAMPLE.read_text())
    known = keys_of(TrainingConfig)
    assert known <= keys_in(raw)
    assert {key for key in keys_in(raw) if key.split(".")[0] != "objectives"} <= known
    assert set(ExpertSettings.model_fields) == set(raw["experts"][0])


def test_the_example_shows_the_defaults() -> None:
    example = read_config(EXAMPLE)
    features = {"cache": EXAMPLE.parent / "embeddings-cache"}
    plain = TrainingConfig.model_validate({"data": example.data, "experts": example.experts, "features": features})
    assert example.model_copy(update={"objectives": plain.objectives}) == plain


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, LEAST))
    assert config.data.prompts == [tmp_path / "p.jsonl"]
    assert config.data.outcomes == [tmp_path / "o.jsonl"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data": {**LEAST["data"], "categories": "some"}}, "data.categories: "),
        ({"sed": 1}, r"sed: there is no such key; did you mean 'seed'\?"),
        ({"gate": {"neighbors": 5}}, r"gate.neighbors: there is no such key; did you mean 'neighbours'\?"),
        (
            {"objectives": {"cheap": {"active_param_b": 1}}},
            r"objectives.cheap.active_param_b: there is no such key; did you mean 'active_params_b'\?",
        ),
        ({"experts": [{"name": "a", "active_params_b": 1, "size": 2}]}, "experts.a.size: there is no such key"),
        ({"experts": [{"name": "a"}]}, "experts: a needs active_params_b or price_per_million_tokens"),
        (
            {"experts": [{"name": "a", "active_params_b": 1}, {"name": "b", "price_per_million_tokens": 1}]},
            "experts: a has no price_per_million_tokens, and not every expert has the other cost",
        ),
        ({"objectives": {"cheap": {"price_per_million_tokens": 1}}}, "which objectives.cheap counts"),
        (
            {"objectives": {"cheap": {"active_params_b": 1, "price_per_million_tokens": 1}}},
            "a budget is on active_params_b or price_per_million_tokens, not on both",
        ),
        (
            {"experts": [{"name": "a", "active_params_b": 1, "vision": True, "modalities": []}]},
            r"experts.a: vision is true, but image is not among the modalities \(none\); leave one of the two out",
        ),
        ({"experts": LEAST["experts"] * 2}, "a name occurs twice"),
        (
            {"experts": [{"name": "Qwen/Q", "active_params_b": 1}]},
            "experts.Qwen/Q.name: 'Qwen/Q' is not a name: up to 64",
        ),
        ({"experts": [{"name": "auto", "active_params_b": 1}]}, "experts.auto: the name 'auto' is reserved"),
        ({"objectives": {"a b": {}}}, "objectives.a b: 'a b' is not a name: up to 64 letters"),
        ({"mapping": {"bans": {"c": ["a"]}}}, "mapping: every expert is banned from category 'c'"),
        (
            {"mapping": {"pins": {"c": "a"}, "bans": {"c": ["a"]}}},
            "mapping: category 'c' is pinned to 'a', which is banned from it",
        ),
        (
            {"probes": {"own": [{"prompt": "x", "experts": {"qualty": "a"}}]}},
            "probes.own.0.experts: 'qualty' is none of quality",
        ),
        ({"probes": {"own": [{"prompt": "x", "experts": {"quality": "z"}}]}}, "'z' is none of a"),
        ({"experts": []}, "experts: "),
        ({"data": {"prompts": ["p"]}}, "data.outcomes: is missing"),
        ({"classifier": {"folds": 1}}, "classifier.folds: must be at least 2, not 1"),
        ({"mapping": {"mode": "medium"}}, "mapping.mode: 'medium' is not one of 'soft' or 'hard'"),
        ({"mapping": {"pins": {"c": "zed"}}}, "'zed', which is not an expert"),
        ({"data": {**LEAST["data"], "label": ""}}, "data.label: must have at least 1 character, not ''"),
        ({"data": {**LEAST["data"], "prompts": [None]}}, "data.prompts.0: must be a path, not None"),
        ({"data": {**LEAST["data"], "prompts": []}}, "data.prompts: must have at least one entry$"),
        ({"seed": 2**32}, "seed: must be at most 4294967295, not 4294967296"),
        (
            {"classifier": {"inverse_regularisation": 5e-324}},
            "inverse_regularisation: must be at least 0.000001, not",
        ),
        (
            {"experts": [{"name": "a", "active_params_b": 1e308}]},
            r"experts.a.active_params_b: must be at most 1000000000(\.0)?, not 1e\+308",
        ),
        (
            {"objectives": {"cheap": {"active_params_b": -1}}},
            "objectives.cheap.active_params_b: must be greater than 0, not -1",
        ),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_config(written(tmp_path, {**LEAST, **change}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "just words", "", "\x00"])
def test_what_is_no_config_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "train.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data: [b\n c: d", "train.yaml, line 2: is not YAML: expected ',' or '\\]', but got ':'"),
        ("data:\n\tprompts: x", "train.yaml, line 2: is not YAML: .*; indent with spaces"),
        ("seed: 1\nseed: 2", "the key 'seed' occurs twice"),
    ],
)
def test_a_slip_in_the_yaml_is_told_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "train.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_config(tmp_path / "train.yaml")


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "nothing.yaml")


ENDPOINT = {"kind": "endpoint", "model": "m", "base_url": "http://a.example/v1"}


@pytest.mark.parametrize(
    ("base_url", "sentence"),
    [
        ("a.example/v1", "'a.example/v1' is not an address"),
        ("http://u:s3cret@a/v1", "has credentials in it; leave them out"),
        ("http://a/v1/embeddings", "write the part before '/embeddings': http://a/v1"),
        ("http://a/v1#x", "has a fragment"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_refused(tmp_path: Path, base_url: str, sentence: str) -> None:
    settings = {**LEAST, "features": {**ENDPOINT, "base_url": base_url}}
    with pytest.raises(ConfigError, match=r"features\.base_url: '") as refused:
        read_config(written(tmp_path, settings))
    assert sentence in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_the_endpoints_key_is_clean_or_refused_at_load_and_missing_only_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, {**LEAST, "features": {**ENDPOINT, "api_key_env": "EMBED_KEY"}})
    monkeypatch.setenv("EMBED_KEY", "sk-1\n")
    assert read_config(path).features.api_key == "sk-1"
    monkeypatch.setenv("EMBED_KEY", "s3cret\nword")
    with pytest.raises(ConfigError, match=r"^features\.api_key_env: the environment variable 'EMBED_KEY' has") as told:
        read_config(path)
    assert "s3cret" not in str(told.value)
    monkeypatch.delenv("EMBED_KEY")
    features = read_config(path).features
    with pytest.raises(ConfigError, match="'EMBED_KEY' is not set"):
        _ = features.api_key


def test_the_way_to_the_endpoint_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://p:1")
    features = read_config(written(tmp_path, {**LEAST, "features": ENDPOINT})).features
    assert features.proxy is not None
    assert features.proxy.url == "http://p:1"


QWEN = {"name": "qwen3", "active_params_b": 8.0, "total_params_b": 10.0, "context_tokens": 8192, "tools": False}


def test_a_preset_costs_what_its_base_does_times_its_factor(tmp_path: Path) -> None:
    thinker = {"name": "thinker", "of": "qwen3", "cost_factor": 2.5}
    priced = {"name": "hosted", "active_params_b": 1.0, "price_per_million_tokens": 0.4}
    deep = {"name": "deep", "of": "hosted", "tools": False}
    config = read_config(written(tmp_path, {**LEAST, "experts": [thinker, QWEN, priced, deep]}))
    found = {expert.name: expert for expert in config.experts}
    assert list(found) == ["thinker", "qwen3", "hosted", "deep"]
    assert (found["thinker"].active_params_b, found["thinker"].hosted_params_b) == (20.0, 10.0)
    assert (found["thinker"].context_tokens, found["thinker"].tools) == (8192, False)
    assert (found["deep"].price_per_million_tokens, found["deep"].active_params_b) == (0.4, 1.0)
    assert (found["deep"].tools, found["hosted"].tools) == (False, True)
    assert config.costs("active_params_b") == [20.0, 8.0, 1.0, 1.0]
    assert TrainingConfig.model_validate(dict(config)).experts == config.experts, "a second reading changes nothing"


def outcome(prompt: str, expert: str, tokens: int | None) -> str:
    return json.dumps({"prompt_id": prompt, "expert": expert, "score": 1.0, "output_tokens": tokens}) + "\n"


def test_a_presets_factor_is_measured_from_its_outcomes_unless_it_is_given(tmp_path: Path) -> None:
    rows = [
        outcome("1", "qwen3", 10),
        outcome("1", "thinker", 40),
        outcome("2", "qwen3", 30),
        outcome("2", "thinker", 60),
    ]
    rows += [outcome("3", "thinker", 900), outcome("4", "qwen3", None), outcome("4", "thinker", 5)]  # no pairs
    (tmp_path / "o.jsonl").write_text("".join(rows))
    thinker, given = {"name": "thinker", "of": "qwen3"}, {"name": "given", "of": "qwen3", "cost_factor": 3.0}
    unrecorded = {"name": "unrecorded", "of": "qwen3"}
    config = read_config(written(tmp_path, {**LEAST, "experts": [QWEN, thinker, given, unrecorded]}))
    assert config.costs("active_params_b") == [8.0, 8.0 * 2.5, 24.0, 8.0]
    assert measured_cost_factors({**LEAST, "experts": [QWEN, thinker, given]}, tmp_path) == {"thinker": 2.5}
    for recorded in tmp_path.glob("*.jsonl"):
        recorded.write_text(recorded.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert measured_cost_factors({**LEAST, "experts": [QWEN, thinker]}, tmp_path) == {"thinker": 2.5}, "with a mark"


@pytest.mark.parametrize("ending", ["jsonl", "ndjson"])
def test_a_presets_factor_is_measured_in_outcomes_of_other_programs(tmp_path: Path, ending: str) -> None:
    """A byte order mark, another ending, counts with a decimal point, ids that are numbers."""
    rows = [
        {"prompt_id": 1, "expert": "qwen3", "output_tokens": 10.0},
        {"prompt_id": 1, "expert": "thinker", "output_tokens": 40.0},
    ]
    path = tmp_path / f"o.{ending}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig")
    raw = {"data": {"outcomes": [path.name]}, "experts": [QWEN, {"name": "thinker", "of": "qwen3"}]}
    assert measured_cost_factors(raw, tmp_path) == {"thinker": 4.0}


def test_what_is_no_expert_is_refused_also_where_a_factor_is_measured(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text(outcome("1", "qwen3", 10) + outcome("1", "thinker", 40) + "[" * 100_000)
    for wrong in (5, {"name": ["x"]}):
        experts = [QWEN, {"name": "thinker", "of": "qwen3"}, wrong]
        with pytest.raises(ConfigError, match="experts"):
            read_config(written(tmp_path, {**LEAST, "experts": experts}))


@pytest.mark.parametrize(
    ("experts", "sentence"),
    [
        ([QWEN, {"name": "t", "of": "gone"}], "t.of: 'gone' is not one of qwen3"),
        ([QWEN, {"name": "t", "of": "qwen3"}, {"name": "u", "of": "t"}], "u.of: 't' is not one of qwen3"),
        ([{**QWEN, "cost_factor": 2}], "cost_factor needs `of`"),
        ([QWEN, {"name": "t", "of": "qwen3", "active_params_b": 8}], "active_params_b belongs to its base, 'qwen3'"),
    ],
)
def test_costs_that_cannot_be_known_are_refused(tmp_path: Path, experts: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_config(written(tmp_path, {**LEAST, "experts": experts}))
