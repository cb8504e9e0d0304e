"""Presets in a configuration: what they may say. What belongs to their base: see `test_lora_settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.build.experts import build_experts
from coe_server.build.router import build_capabilities
from coe_server.build.service import build_presets
from coe_server.cli import app
from coe_server.config.schema import ServerConfig, read_config
from coe_server.http.bodies.presets import Preset

BASE = {"name": "qwen3", "engine": "simulated", "weights_bytes": "1GiB", "context_tokens": 8192, "tools": True}
PRESET = {"name": "thinker", "engine": "preset", "of": "qwen3", "set": {"reasoning_effort": "high"}}


def mistakes(tmp_path: Path, *experts: dict[str, Any]) -> list[str]:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"experts": list(experts)}))
    return read_config(path)[1]


def config(*experts: dict[str, Any]) -> ServerConfig:
    return ServerConfig.model_validate({"experts": list(experts)})


def test_a_preset_has_no_engine_and_its_bases_model_and_capabilities() -> None:
    found = config(BASE, {**PRESET, "tools": False})
    assert [expert.name for expert in build_experts(found)] == ["qwen3"]
    assert found.bases == {"thinker": "qwen3"}
    assert found.engine_models == {"qwen3": "qwen3", "thinker": "qwen3"}
    assert build_presets(found) == {"thinker": Preset({"reasoning_effort": "high"}, {}, ())}
    said = build_capabilities(found)["thinker"]
    assert (said.context_tokens, said.tools) == (8192, False)


def test_an_endpoint_may_have_members_of_its_own_over_those_of_all() -> None:
    own = {"responses": {"set": {"reasoning": {"effort": "low"}}, "remove": ["top_k"]}, "messages": {"force": {"x": 1}}}
    general = {"set": {"reasoning_effort": "high", "x": 2}, "force": {"top_k": 3}}
    (preset,) = build_presets(config(BASE, {**PRESET, **general, "by_endpoint": own})).values()
    everywhere = Preset({"reasoning_effort": "high", "x": 2}, {"top_k": 3}, ())
    assert (preset.fills, preset.replaces, preset.drops) == (everywhere.fills, everywhere.replaces, everywhere.drops)
    assert preset.own == {
        "responses": Preset({"reasoning": {"effort": "low"}, "reasoning_effort": "high", "x": 2}, {}, ("top_k",)),
        "messages": Preset({"reasoning_effort": "high"}, {"top_k": 3, "x": 1}, ()),
    }


def test_a_preset_of_one_endpoint_alone_is_none_of_the_others(tmp_path: Path) -> None:
    alone = {"name": "thinker", "engine": "preset", "of": "qwen3", "by_endpoint": {"chat": {"set": {"top_k": 1}}}}
    assert mistakes(tmp_path, BASE, alone) == []
    (preset,) = build_presets(config(BASE, alone)).values()
    assert (preset.fills, preset.own) == ({}, {"chat": Preset({"top_k": 1}, {}, ())})


def test_a_mistake_of_one_endpoint_is_named_with_it(tmp_path: Path) -> None:
    told = mistakes(tmp_path, BASE, {**PRESET, "by_endpoint": {"chat": {"force": {"n": 2}}}})
    assert told == ["experts.thinker.by_endpoint.chat.force.n: is the caller's: it is read before an expert is chosen"]
    (unknown,) = mistakes(tmp_path, BASE, {**PRESET, "by_endpoint": {"embeddings": {"force": {"a": 2}}}})
    assert "experts.thinker.by_endpoint" in unknown


def test_a_remote_experts_preset_is_sent_with_the_remote_models_name() -> None:
    remote = {"name": "hosted", "engine": "remote", "base_url": "http://127.0.0.1:1/v1", "model": "some-model"}
    found = config(remote, {**PRESET, "of": "hosted"})
    assert found.engine_models == {"hosted": "some-model", "thinker": "some-model"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"of": "gone"}, "of: there is no expert 'gone'"),
        ({"set": {}}, "set: is missing; a preset without set, force and remove is an alias (aliases)"),
        ({"force": {"model": "x"}}, "force.model: is the caller's: it is read before an expert is chosen"),
        ({"remove": ["stream"]}, "remove.stream: is the caller's: it is read before an expert is chosen"),
        ({"remove": ["reasoning_effort"]}, "remove.reasoning_effort: is in set, too; leave it in one"),
        ({"set": {"x" * 65: 1}}, f"set.{'x' * 65}: is no member's name: up to 64 characters"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    assert mistakes(tmp_path, BASE, PRESET | changes) == [f"experts.thinker.{told}"]


def test_a_preset_of_a_preset_is_refused_with_the_name_to_write(tmp_path: Path) -> None:
    told = mistakes(tmp_path, BASE, PRESET, {**PRESET, "name": "deeper", "of": "thinker"})
    assert told == ["experts.deeper.of: 'thinker' has no engine of its own; name 'qwen3'"]


def test_a_date_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(
        "experts: [{name: a, engine: simulated}, {name: b, engine: preset, of: a, set: {when: 2026-01-01}}]"
    )
    (told,) = read_config(tmp_path / "serve.yaml")[1]
    assert told.endswith("cannot be written as JSON; put it in quotes")


def test_validate_plans_for_the_base_alone_and_names_the_preset(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(
        yaml.safe_dump({"memory": {"device": "2GiB", "host": "2GiB"}, "experts": [BASE, PRESET]})
    )
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "serve.yaml")])
    assert done.exit_code == 0, done.output
    assert "thinker" in done.stdout
    assert "Fits: the local expert" in done.stdout
