"""`coe pull`: downloads what is not here, says what is, and ends with a sentence where it cannot."""

import json
import shutil
import socket
from collections import namedtuple

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.build.experts import build_experts
from coe_server.cli import app
from coe_server.config.schema import load_config
from coe_server.engines.hub import HubSource
from coe_server.engines.model_size import model_folder
from coe_server.errors import ConfigError
from tests.engines.small_adapter import make_adapter
from tests.engines.stand_in_hub import serving_hub
from tests.engines.test_model_size import LLAMA31_8B

NAME = "org/small"
SHARDS = {f"model-0000{number}-of-00002.safetensors": bytes([number]) * 3000 for number in (1, 2)}
FILES = {
    "config.json": json.dumps(LLAMA31_8B).encode(),
    "tokenizer.json": b"{}",
    "pytorch_model.bin": bytes(9000),
    "original/consolidated.00.pth": bytes(9000),
    **SHARDS,
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return tmp_path / "hf/hub"


@pytest.fixture
def config(tmp_path):
    experts = [
        {"name": "small", "engine": "vllm", "model": NAME},
        {"name": "twin", "engine": "vllm", "model": NAME},
        {"name": "pretend", "engine": "simulated"},
    ]
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"experts": experts, "vllm": {"command": "true", "platform": "cpu"}}))
    return path


def coe(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_it_downloads_what_is_loaded_and_nothing_else(config, cache, monkeypatch):
    with serving_hub({NAME: FILES}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        done = coe("pull", config)
        assert done.exit_code == 0, done.output
        assert done.stdout.count(NAME) == 2, "a model of two experts is one download"
        folder = model_folder(NAME, {"HF_HUB_CACHE": str(cache)})
        assert {file.name for file in folder.iterdir()} == {"config.json", "tokenizer.json", *SHARDS}
        hub.asked.clear()
        again = coe("pull", config, "small")
        assert (again.exit_code, "small: org/small is already here" in again.stdout) == (0, True)
        assert not [asked for asked in hub.asked if asked.startswith("GET") and "resolve" in asked]


def test_an_interrupted_download_goes_on_with_the_files_that_are_left(config, cache, monkeypatch):
    last = list(SHARDS)[1]
    left = {NAME: dict(FILES)}
    with serving_hub(left) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert coe("pull", config).exit_code == 0
        snapshot = model_folder(NAME, {"HF_HUB_CACHE": str(cache)})
        (snapshot / last).resolve().unlink()
        (snapshot / last).unlink()
        hub.asked.clear()
        assert coe("pull", config).exit_code == 0
        fetched = [asked.rpartition("/")[2] for asked in hub.asked if asked.startswith("GET") and "resolve" in asked]
        assert fetched == [last]


def test_without_a_network_what_is_here_is_enough(config, cache, monkeypatch):
    snapshot = cache / "models--org--small/snapshots/main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(bytes(10))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        done = coe("pull", config)
        assert done.exit_code == 0, done.output
        assert "is already here" in done.stdout
        shutil.rmtree(snapshot)
        done = coe("pull", config)
    assert done.exit_code == 1
    assert "1 of 1 models are still missing; run `coe pull` again" in done.stderr


def test_too_little_room_is_said_before_the_download(config, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 0, 100 << 20))
    with serving_hub({NAME: FILES}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        done = coe("pull", config)
    assert done.exit_code == 1
    assert "the download needs" in done.stderr
    assert "set HF_HOME to a folder on a larger disk" in done.stderr
    assert not list(cache.rglob("*.safetensors"))


def test_a_name_that_is_not_there_is_a_mistake(config, cache):
    done = coe("pull", config, "smal")
    assert done.exit_code == 2
    assert "there is no expert 'smal'; the experts are small, twin, pretend" in done.stderr


def test_a_start_needs_no_network_and_refuses_what_is_not_here(config, cache, monkeypatch):
    with serving_hub({NAME: FILES}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with pytest.raises(ConfigError, match=r"^experts\.small\.model: 'org/small' is not downloaded; run `coe pull"):
            build_experts(load_config(config))
        assert hub.asked == []
        assert coe("pull", config).exit_code == 0
        hub.asked.clear()
        assert len(build_experts(load_config(config))) == 3
        assert hub.asked == []


def test_the_source_of_a_model_keeps_its_token_out_of_messages():
    assert "hf_x" not in HubSource(NAME, {"HF_TOKEN": "hf_x"}).endpoint


def test_an_adapter_is_downloaded_as_a_model_is_and_its_pickle_is_not(config, cache, monkeypatch, tmp_path):
    made = make_adapter(tmp_path / "made")
    files = {file.name: file.read_bytes() for file in made.iterdir()} | {"adapter_model.bin": bytes(9000)}
    settings = yaml.safe_load(config.read_text())
    settings["experts"].append({"name": "sql", "engine": "lora", "base": "small", "adapter": "org/sql"})
    config.write_text(yaml.safe_dump(settings))
    with serving_hub({NAME: FILES, "org/sql": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        done = coe("pull", config, "sql")
        assert done.exit_code == 0, done.output
        assert "sql: org/sql downloaded into" in done.stdout
        assert "org/sql is already here" in coe("pull", config, "sql").stdout
    (snapshot,) = (cache / "models--org--sql/snapshots").iterdir()
    assert {file.name for file in snapshot.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
