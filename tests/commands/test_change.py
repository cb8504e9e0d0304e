"""`coe add` and `coe remove`: what they write, what they refuse, and that a running server follows."""

import os
import stat

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.commands.change import entry_of, settings_of
from coe_server.errors import ConfigError
from tests.engines.make_gguf import write_gguf
from tests.test_reload import ask, serving

PLAIN = """\
# mine
http: {port: 1}   # nothing listens there
memory: {device: 20MiB, host: 1GiB}
experts:
  - {name: a, engine: simulated, weights_bytes: 10MiB}   # the first
  - {name: b, engine: simulated, weights_bytes: 10MiB}
  - {name: p, engine: preset, of: b, set: {top_p: 1}}
aliases: {gpt: a}
"""
SIMULATED = ("--set", "engine=simulated", "--set", "weights_bytes=5MiB", "--set", "start_seconds=0.01")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(PLAIN)
    path.chmod(0o640)
    return path


def coe(*words, code=0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_an_expert_is_added_and_removed_without_a_server(file):
    told = coe("add", "pretend", *SIMULATED, "--name", "c", "--config", file)
    assert "expert 'c' is added (engine simulated). No server answers at http://127.0.0.1:1; it counts from" in told
    assert yaml.safe_load(file.read_text())["experts"][-1] == {
        "name": "c",
        "engine": "simulated",
        "weights_bytes": "5MiB",
        "start_seconds": 0.01,
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert "expert 'c' is removed" in coe("remove", "c", "--config", file)
    assert file.read_text() == PLAIN
    assert os.listdir(file.parent) == ["serve.yaml"]


def test_a_link_to_the_file_stays_one(file, tmp_path):
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    coe("add", "pretend", *SIMULATED, "--name", "c", "--config", link)
    assert link.is_symlink()
    assert "name: c" in file.read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("add", "x", *SIMULATED, "--name", "a"), "experts.a: is there already; give another name (--name)"),
        (("add", "x", "--set", "engine=simulated"), "is left as it is, since experts.x: expert 'x' needs 15,360 MiB"),
        (("add", "x", *SIMULATED, "--set", "pin=vram"), "since experts.x.pin: 'vram' is not one of"),
        (("add", "x", *SIMULATED, "--set", "pni=host"), "experts.x.pni: there is no such key; did you mean 'pin'?"),
        (("add", "https://api.example.com/v1", "--name", "r"), "experts.r.model: is missing"),
        (("add", "https://api.example.com/v1"), "name the model at the endpoint, e.g. --set model=large"),
        (("add", "./none.gguf"), "./none.gguf: there is no such file or folder"),
        (("add", "x", "--set", "engine"), "--set: 'engine' is no KEY=VALUE"),
        (("add", "x", "--name", "auto", *SIMULATED), "experts.auto"),
        (("remove", "z"), "there is no expert 'z' in the file; there are a, b, p"),
        (("remove", "a"), "aliases.gpt: 'a' is neither an expert nor auto"),
        (("remove", "b"), "experts.p.of: there is no expert 'b'"),
    ],
)
def test_what_validate_refuses_is_told_and_leaves_the_file_as_it_was(file, words, sentence):
    told = coe(*words, "--config", file, code=2)
    assert sentence in told
    assert ".draft" not in told
    assert file.read_text() == PLAIN
    assert os.listdir(file.parent) == ["serve.yaml"]


def test_line_ends_of_another_system_stay_also_after_a_change(file):
    windows = PLAIN.replace("\n", "\r\n").encode()
    file.write_bytes(windows)
    coe("add", "pretend", *SIMULATED, "--name", "c", "--config", file)
    assert b"\n" not in file.read_bytes().replace(b"\r\n", b"")
    coe("remove", "c", "--config", file)
    assert file.read_bytes() == windows


def test_a_missing_file_is_told_with_the_way_out(tmp_path):
    assert "`coe init` writes a first one" in coe("remove", "a", "--config", tmp_path / "none.yaml", code=2)


def test_settings_are_nested_and_typed():
    given = ("args.max_model_len=8192", "args.dtype=bfloat16", "sleep=false", "modalities=[image]", 'name="1"', "x=")
    assert settings_of(given) == {
        "args": {"max_model_len": 8192, "dtype": "bfloat16"},
        "sleep": False,
        "modalities": ["image"],
        "name": "1",
        "x": "",
    }
    for wrong in ("a", "=1", "a..b=1", "a=[1"):
        with pytest.raises(ConfigError, match="--set"):
            settings_of([wrong])
    with pytest.raises(ConfigError, match="'a' is given a value and settings of its own"):
        settings_of(["a=1", "a.b=1"])


def test_the_model_decides_about_engine_and_name(tmp_path):
    hub = {"name": "qwen2.5-coder-7b-instruct", "engine": "vllm", "model": "Qwen/Qwen2.5-Coder-7B-Instruct"}
    assert entry_of("Qwen/Qwen2.5-Coder-7B-Instruct", None, {}) == hub
    remote = {"name": "large-2", "engine": "remote", "base_url": "https://api.example.com/v1", "model": "org/Large 2"}
    assert entry_of("https://api.example.com/v1", None, {"model": "org/Large 2"}) == remote
    assert entry_of("org/model", "m", {"args": {"dtype": "auto"}})["args"] == {"dtype": "auto"}
    with pytest.raises(ConfigError, match=r"is no \.gguf file, and no folder with config.json and weights"):
        entry_of(str(tmp_path), None, {})
    assert entry_of(str(tmp_path), "f", {"engine": "vllm"}) == {"name": "f", "engine": "vllm", "model": str(tmp_path)}


def test_a_running_server_follows_and_what_it_refuses_is_taken_back(tmp_path):
    expert = {"engine": "simulated", "weights_bytes": "10MiB", "start_seconds": 0.01}
    memory = {"device": "20MiB", "host": "1GiB"}
    experts = [{"name": "a", **expert}]
    with serving(tmp_path, experts=experts, router=None, memory=memory) as (_, port, config, _):

        def models():
            return [one["id"] for one in ask(port, "GET", "/v1/models")[2]["data"]]

        told = coe("add", "pretend", *SIMULATED, "--name", "c", "--config", config)
        assert f"The server at http://127.0.0.1:{port} has taken it over" in told
        assert models() == ["a", "c"]
        question = {"model": "c", "messages": [{"role": "user", "content": "hello"}]}
        assert ask(port, "POST", "/v1/chat/completions", question)[0] == 200
        coe("remove", "c", "--config", config)
        assert models() == ["a"]
        status, _, body = ask(port, "POST", "/v1/chat/completions", question)
        assert (status, body["error"]["code"]) == (404, "model_not_found")

        config.write_text(config.read_text() + "scheduling: {queue_limit: 3}\n")
        before = config.read_text()
        told = coe("add", "pretend", *SIMULATED, "--name", "c", "--config", config, code=1)
        assert "scheduling.queue_limit: was 64 and is 3 in the file; restart required" in told
        assert "is as it was" in told
        assert config.read_text() == before


def test_a_local_gguf_file_gets_the_entry_that_init_would_write(tmp_path, monkeypatch):
    program = tmp_path / "bin/llama-server"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho version: 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    place = tmp_path / "Tiny.gguf"
    write_gguf(place)
    entry = entry_of(str(place), None, {"preload": "device"})
    assert (entry["name"], entry["engine"], entry["model"]) == ("tiny", "command", str(place))
    assert entry["preload"] == "device"
    assert str(program) in entry["command"]


def test_help_teaches_both_commands():
    assert "coe add Qwen/Qwen2.5-Coder-7B-Instruct" in coe("add", "--help")
    assert "new requests for it get 404" in coe("remove", "--help")
