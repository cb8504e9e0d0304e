"""Settings of a command engine: words, mistakes that stop the start, and what the engine is built with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from coe_server.build.experts import build_experts
from coe_server.config.diff import live_changes
from coe_server.config.environment import Environment
from coe_server.config.schema import ServerConfig, load_config
from coe_server.engines.command import CommandEngine, CommandExpert
from coe_server.errors import ConfigError

SERVE = "sh -m {model} --port {port}"


def load(folder: Path, variables: dict[str, str] | None = None, **expert: Any) -> ServerConfig:
    path = folder / "serve.yaml"
    settings = {"name": "a", "engine": "command", "command": SERVE, "model": "m"} | expert
    memory = {"device": "100MiB", "host": "100MiB"}
    path.write_text(yaml.safe_dump({"experts": [settings], "memory": memory, "vllm": {"platform": "cpu"}}))
    return load_config(path, Environment(variables or {}))


def of(config: ServerConfig) -> CommandExpert:
    (expert,) = config.experts
    assert isinstance(expert, CommandExpert)
    return expert


@pytest.mark.parametrize(
    ("expert", "sentence"),
    [
        ({"command": "sh 'x"}, "experts.a.command: 'sh 'x' cannot be split into words"),
        ({"command": "sh -m x"}, "experts.a.command: needs {socket} or {port}"),
        ({"model": ""}, "experts.a.model: is missing; the command uses {model}"),
        ({"command": "sh {port} {env.KEY}"}, "experts.a.command: {env.NAME} would be readable by every user"),
        ({"sleep": "POST /sleep"}, "experts.a.wake: is missing; set both sleep and wake"),
        ({"pin": "host"}, "experts.a.pin: 'host' needs `sleep` and `wake`; without it: device or disk"),
        ({"preload": "disk", "pin": "device"}, "experts.a.preload: 'disk' is below its pin, 'device'"),
        ({"stop": "SIGKILL"}, "experts.a.stop: 'SIGKILL' is not one of SIGTERM, SIGINT, SIGQUIT, SIGHUP"),
        ({"environment": {"TOKEN": 12345}}, "experts.a.environment: 'TOKEN' must have a text as its value"),
        ({"canary": "sometimes"}, "experts.a.canary"),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, expert: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(tmp_path, **expert)
    assert sentence in str(told.value)
    assert "12345" not in str(told.value)


def test_a_command_is_split_as_a_shell_splits_and_its_paths_start_at_the_file(tmp_path: Path) -> None:
    expert = of(load(tmp_path, command="./run --template '{\"a\": {}}' {port}", model="./m.gguf"))
    assert expert.command == [f"{tmp_path}/run", "--template", '{"a": {}}', "{port}"]
    assert expert.model == f"{tmp_path}/m.gguf"
    assert expert.served_endpoints == ("chat", "completions")


def test_yaml_reads_off_as_false_and_it_is_off_all_the_same(tmp_path: Path) -> None:
    assert of(load(tmp_path, canary=False)).canary == "off"


def test_values_of_variables_are_filled_in_and_missing_ones_are_told(tmp_path: Path) -> None:
    given = {"environment": {"TOKEN": "Bearer {env.HUSH}"}}
    (expert,) = build_experts(load(tmp_path, {"HUSH": "psst"}, **given))
    assert isinstance(expert.engine, CommandEngine)
    assert expert.engine._launch.environment == {"TOKEN": "Bearer psst"}
    assert "HUSH" not in expert.engine._launch.inherited
    with pytest.raises(
        ConfigError, match=r"experts\.a\.environment\.TOKEN: the environment variable 'HUSH' is not set"
    ):
        build_experts(load(tmp_path, **given))


def test_a_program_of_unknown_size_takes_the_whole_device_and_another_what_it_says(tmp_path: Path) -> None:
    (expert,) = build_experts(load(tmp_path))
    assert expert.engine.footprint.device_awake == 100 << 20
    (expert,) = build_experts(load(tmp_path, device_bytes="7MiB", host_bytes="3MiB"))
    assert (expert.engine.footprint.device_awake, expert.engine.footprint.host) == (7 << 20, 3 << 20)


def test_a_program_that_is_not_here_is_a_warning(tmp_path: Path) -> None:
    config = load(tmp_path, command="no-such-program {port}")
    assert [*of(config).without_effect()] == ["command: there is no program 'no-such-program' on PATH"]
    assert [*of(load(tmp_path)).without_effect()] == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "./missing.gguf"}, ["model: there is no file or folder '{folder}/missing.gguf'"]),
        ({"model": "models/missing.gguf"}, ["model: there is no file or folder 'models/missing.gguf'"]),
        ({"model": "/missing/folder"}, ["model: there is no file or folder '/missing/folder'"]),
        ({"command": "sh -m /missing.gguf {port}"}, ["command: there is no file or folder '/missing.gguf'"]),
        ({"model": "./here.gguf"}, []),
        ({"model": "someone/model-GGUF"}, []),
        ({"command": "./docker -m /missing.gguf -p {port}", "model": "/models/missing.gguf"}, []),
    ],
)
def test_a_model_that_is_not_here_is_a_warning(given: dict[str, str], told: list[str], tmp_path: Path) -> None:
    (tmp_path / "here.gguf").touch()
    (tmp_path / "docker").touch(mode=0o700)
    config = load(tmp_path, **{"command": "sh {port}", **given})
    assert [*of(config).without_effect()] == [one.format(folder=tmp_path) for one in told]


def test_a_reload_that_changes_a_variable_does_not_show_it(tmp_path: Path) -> None:
    before = load(tmp_path, environment={"TOKEN": "old secret"})
    after = load(tmp_path, environment={"TOKEN": "new secret"})
    told = live_changes(before, after)
    assert told
    assert "secret" not in str(told)
