"""Adapters in a configuration: what belongs to their base, as for presets; which bases they can have; their files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.build.experts import build_experts
from coe_server.build.router import build_capabilities
from coe_server.cli import app
from coe_server.config.diff import ExpertChanges, expert_changes, live_changes, restarting
from coe_server.config.schema import ServerConfig, load_config, read_config
from coe_server.engines.vllm.command import engine_environment, serve_command
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.settings import key_of
from coe_server.errors import ConfigError
from tests.engines.small_adapter import HIDDEN, SHAPES, WIDE, make_adapter, make_base

BASE = {"name": "coder", "engine": "vllm", "model": "./coder", "context_tokens": 8192}
ADAPTER = {"name": "sql", "engine": "lora", "base": "coder", "adapter": "./sql"}
PRESET = {"name": "thinker", "engine": "preset", "of": "coder", "set": {"seed": 1}}
LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_base(tmp_path / "coder")
    make_adapter(tmp_path / "sql")
    return tmp_path


def written(folder: Path, *experts: dict[str, Any]) -> Path:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"vllm": {"command": sys.executable, "platform": "cpu"}, "experts": list(experts)}))
    return path


def mistakes(folder: Path, *experts: dict[str, Any]) -> list[str]:
    return read_config(written(folder, *experts))[1]


def loaded(folder: Path, *experts: dict[str, Any]) -> ServerConfig:
    return load_config(written(folder, *experts))


def engine_of(config: ServerConfig) -> VllmEngine:
    (expert,) = build_experts(config)
    assert isinstance(expert.engine, VllmEngine)
    return expert.engine


def test_an_adapter_is_a_name_on_its_bases_engine_with_a_model_name_of_its_own(folder: Path) -> None:
    config = loaded(folder, BASE, {**ADAPTER, "tools": False})
    assert [expert.name for expert in build_experts(config)] == ["coder"]
    assert config.bases == {"sql": "coder"}
    assert config.engine_models == {"coder": "coder", "sql": "sql"}
    said = build_capabilities(config)["sql"]
    assert (said.context_tokens, said.tools) == (8192, False)


def test_rank_number_and_paths_of_the_adapters_start_the_base(folder: Path) -> None:
    make_adapter(folder / "wide", rank=9)
    config = loaded(folder, BASE, ADAPTER, {**ADAPTER, "name": "wide", "adapter": "./wide"})
    launch = engine_of(config).launch
    words = serve_command(launch, Path("/run/engine.sock"))
    for option, value in {"--max-lora-rank": "16", "--max-loras": "2", "--max-cpu-loras": "10"}.items():
        assert words[words.index(option) + 1] == value
    assert "--enable-lora" in words
    modules = words.index("--lora-modules")
    assert words[modules + 1 : modules + 3] == [
        f'{{"name": "sql", "path": "{folder}/sql"}}',
        f'{{"name": "wide", "path": "{folder}/wide"}}',
    ]
    assert engine_environment(launch, Path("/run"))["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_a_base_without_adapters_starts_as_before(folder: Path) -> None:
    launch = engine_of(loaded(folder, BASE)).launch
    assert not [word for word in serve_command(launch, Path("/run/engine.sock")) if "lora" in word]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in engine_environment(launch, Path("/run"))


def test_many_adapters_take_eight_slots_and_stay_in_host_memory(folder: Path) -> None:
    config = loaded(folder, BASE, *({**ADAPTER, "name": f"a{number}"} for number in range(20)))
    launch = engine_of(config).launch
    words = serve_command(launch, Path("/run/engine.sock"))
    assert words[words.index("--max-loras") + 1] == "8"
    assert words[words.index("--max-cpu-loras") + 1] == "28", "a reload may bring eight more"


def test_the_footprint_grows_by_its_adapters_and_is_measured_anew(folder: Path) -> None:
    alone, together = engine_of(loaded(folder, BASE)), engine_of(loaded(folder, BASE, ADAPTER))
    size = (folder / "sql/adapter_model.safetensors").stat().st_size
    assert together.footprint.host_process >= alone.footprint.host_process + size
    assert key_of(together.launch) != key_of(alone.launch)


@pytest.mark.parametrize("one", [ADAPTER, PRESET], ids=["adapter", "preset"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pin", "device"),
        ("preload", "host"),
        ("ttl_seconds", 60),
        ("kv_cache", "1GiB"),
        ("cards", [0]),
        ("max_concurrency", 2),
    ],
)
def test_what_decides_about_memory_belongs_to_the_base(
    folder: Path, one: dict[str, Any], key: str, value: object
) -> None:
    told = mistakes(folder, BASE, {**one, key: value})
    assert told == [f"experts.{one['name']}.{key}: belongs to its base, 'coder'; give it there"]


@pytest.mark.parametrize(
    ("others", "adapter", "told"),
    [
        ([], {"base": "gone"}, "experts.sql.base: there is no expert 'gone'"),
        (
            [{"name": "pretend", "engine": "simulated"}],
            {"base": "pretend"},
            "experts.sql.base: 'pretend' is engine: simulated; an adapter's is engine: vllm",
        ),
        (
            [{**ADAPTER, "name": "other"}],
            {"base": "other"},
            "experts.sql.base: 'other' is an adapter of 'coder' and cannot be a base",
        ),
        (
            [PRESET],
            {"base": "thinker"},
            "experts.sql.base: 'thinker' has no engine of its own; name 'coder'",
        ),
        (
            [{**PRESET, "of": "sql"}],
            {},
            "experts.thinker.of: 'sql' is an adapter of 'coder' and cannot be a base",
        ),
        ([], {"adapter": "./gone"}, "there is no adapter in the folder"),
        ([], {"adaptor": "./sql"}, "experts.sql.adaptor: there is no such key; did you mean 'adapter'?"),
        ([], {"bas": "coder"}, "experts.sql.bas: there is no such key; did you mean 'base'?"),
    ],
)
def test_a_false_base_or_adapter_is_told_with_its_key(
    folder: Path, others: list[dict[str, Any]], adapter: dict[str, Any], told: str
) -> None:
    assert any(told in one for one in mistakes(folder, BASE, *others, {**ADAPTER, **adapter}))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"max_lora_rank": 1}, "experts.coder.args.max_lora_rank: 1 is less than its adapters need (2); leave it out"),
        ({"lora-modules": ["a=b"]}, "experts.coder.args.lora_modules: adapters are experts of their own"),
        ({"enable_lora": False}, "experts.coder.args.enable_lora: false contradicts its adapters"),
        ({"runner": "pooling"}, "experts.coder.args.runner: pooling engines answer under no adapter's name here"),
        ({"max_lora": 1}, "experts.coder.args.max_lora: write it in full: max_loras"),
    ],
)
def test_options_that_contradict_the_adapters_are_refused(folder: Path, args: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_experts(loaded(folder, {**BASE, "args": args}, ADAPTER))
    assert str(refused.value).startswith(told)


def test_given_options_win_where_they_hold_all_adapters(folder: Path) -> None:
    config = loaded(folder, {**BASE, "args": {"max_lora_rank": 64, "max_loras": 4}}, ADAPTER)
    words = serve_command(engine_of(config).launch, Path("/run/engine.sock"))
    for option, value in {"--max-lora-rank": "64", "--max-loras": "4", "--max-cpu-loras": "9"}.items():
        assert [words[at + 1] for at, word in enumerate(words) if word == option] == [value]


def test_an_adapter_for_another_base_is_refused_before_anything_starts(folder: Path) -> None:
    make_adapter(folder / "sql", {**SHAPES, LAYER: (HIDDEN, 2 * WIDE)})
    with pytest.raises(ConfigError) as refused:
        build_experts(loaded(folder, BASE, ADAPTER))
    assert str(refused.value).startswith(f"experts.sql.adapter: {folder}/sql is for another base")
    shown = CliRunner().invoke(app, ["validate", str(written(folder, BASE, ADAPTER))])
    assert shown.exit_code != 0
    assert "is for another base" in " ".join((shown.output + shown.stderr).split())


def test_an_adapter_that_is_not_downloaded_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    with pytest.raises(
        ConfigError, match=r"experts\.sql\.adapter: 'someone/sql' is not downloaded; run `coe pull CONFIG sql`"
    ):
        build_experts(loaded(folder, BASE, {**ADAPTER, "adapter": "someone/sql"}))


def test_an_adapter_of_the_hub_is_read_from_its_snapshot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(folder / "home"))
    repository = folder / "home/hub/models--someone--sql"
    snapshot = make_adapter(repository / "snapshots/abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    (adapter,) = engine_of(loaded(folder, BASE, {**ADAPTER, "adapter": "someone/sql"})).launch.adapters
    assert adapter.folder == snapshot


def test_a_reload_tells_a_changed_base_by_its_key_and_restarts_both(folder: Path) -> None:
    running = loaded(folder, BASE, {**BASE, "name": "other"}, ADAPTER)
    wanted = loaded(folder, BASE, {**BASE, "name": "other"}, {**ADAPTER, "base": "other"})
    assert live_changes(running, wanted) == ("experts.sql.base",)
    assert expert_changes(running, wanted).restarted == ("coder", "other")


def test_an_adapter_that_comes_or_goes_concerns_its_base_alone(folder: Path) -> None:
    without = loaded(folder, BASE, {**BASE, "name": "other"})
    beside = loaded(folder, BASE, {**BASE, "name": "other"}, ADAPTER)
    assert expert_changes(without, beside) == ExpertChanges(added=("sql",), regrouped=("coder",))
    assert expert_changes(beside, without) == ExpertChanges(removed=("sql",), regrouped=("coder",))


def test_a_base_that_must_restart_anyway_takes_its_adapters_then(folder: Path) -> None:
    make_adapter(folder / "other")
    running = loaded(folder, BASE, ADAPTER)
    for changes in ({"model": str(make_base(folder / "another"))}, {"kv_cache": "1GiB"}):
        news = expert_changes(running, loaded(folder, BASE | changes, ADAPTER, {**ADAPTER, "name": "further"}))
        assert news == ExpertChanges(added=("further",), restarted=("coder",))
    changed = loaded(folder, BASE, {**ADAPTER, "adapter": "./other"}, {**ADAPTER, "name": "further"})
    assert expert_changes(running, changed) == ExpertChanges(
        added=("further",), restarted=("coder",), adjusted=("sql",)
    )


def test_a_base_that_cannot_take_its_adapters_restarts() -> None:
    news = ExpertChanges(added=("sql", "law"), adjusted=("b", "c"), regrouped=("b", "a"))
    assert restarting(news, (), "abc") == news
    assert restarting(news, {"b"}, "abc") == ExpertChanges(
        added=("sql", "law"), restarted=("b",), adjusted=("c",), regrouped=("a",)
    )
