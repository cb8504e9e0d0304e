"""`coe init`, `coe validate`, `coe serve` on a pretend machine with a card, and every expert answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cuda.cards import GIB, VARIABLE, Cards
from tests.cuda.conftest import QWEN_7B
from tests.docs.reader import Reader, reading
from tests.engines.make_gguf import write_gguf
from tests.engines.test_command_served import ask, text_of

ROOT = Path(__file__).parents[2]
LLAMA_SERVER = f"""#!{sys.executable}
import argparse, os, sys
if sys.argv[1:] == ["--version"]:
    sys.exit("version: 4567 (c0ffee)")
options = argparse.ArgumentParser()
for one in ("-m", "--port", "--api-key", "--alias", "-c", "-ngl"):
    options.add_argument(one)
asked = options.parse_args()
assert open(asked.m, "rb").read(4) == b"GGUF"
words = ["--port", asked.port, "--key", asked.api_key, "--name", asked.alias]
os.execv(sys.executable, [sys.executable, "{ROOT}/tests/engines/stand_in_command.py", *words])
"""
VLLM = f"""#!{sys.executable}
import os, sys
if sys.argv[1:] == ["--version"]:
    sys.exit("0.32.0")
os.execv(sys.executable, [sys.executable, "{ROOT}/tests/cuda/stand_in.py", *sys.argv[1:]])
"""


def downloaded(cache: Path, name: str, size_bytes: int) -> None:
    snapshot = cache / f"models--{name.replace('/', '--')}/snapshots/main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(QWEN_7B))
    (snapshot / "tokenizer.json").write_text("{}")
    with (snapshot / "model.safetensors").open("wb") as out:
        out.truncate(size_bytes)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("main")


@pytest.fixture
def machine(tmp_path: Path, vllm_rules: dict[str, str]) -> Iterator[Reader]:
    """A card of 24 GiB, two engines on PATH, three GGUF files and two downloaded AWQ models."""
    Cards.create(tmp_path / "cards.json", [24 * GIB])
    for name, text in (("llama-server", LLAMA_SERVER), ("vllm", VLLM)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("gemma-3-4b-it-q4_k_m", "mistral-7b-q4_k_m", "phi-4-q4_k_m"):
        write_gguf(tmp_path / f"gguf/{name}.gguf", 3 * GIB)
    downloaded(tmp_path / "hub", "Qwen/Qwen2.5-7B-Instruct-AWQ", round(5.2 * GIB))
    downloaded(tmp_path / "hub", "Qwen/Qwen2.5-Coder-14B-Instruct-AWQ", round(9.3 * GIB))
    with reading(tmp_path, lambda content, port: content) as reader:
        path = f"{tmp_path / 'bin'}:{reader.environment['PATH']}"
        driver = Path(__file__).with_name("driver")
        reader.environment |= vllm_rules | {
            "PATH": path,
            "PYTHONPATH": f"{ROOT}:{driver}",
            "HOME": str(tmp_path),
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            VARIABLE: str(tmp_path / "cards.json"),
        }
        yield reader


@pytest.mark.timeout(1200)
def test_three_commands_from_models_on_disk_to_answers(machine: Reader) -> None:
    machine.run("coe init gguf")
    machine.run("coe validate serve.yaml --machine 24GiB,host=64GiB")
    assert machine.said["coe validate serve.yaml --machine 24GiB,host=64GiB"].startswith("Fits: 5 local experts")
    machine.serve(f"coe serve serve.yaml --port {machine.port}")
    for name in ("gemma-3-4b-it-q4_k_m", "mistral-7b-q4_k_m", "phi-4-q4_k_m"):
        headers, answer = ask(machine, name, "good morning")
        assert text_of(answer) == f"good morning {name}"
        assert headers["x-coe-expert"] == name
    for name in ("qwen2.5-7b-instruct-awq", "Qwen/Qwen2.5-Coder-14B-Instruct-AWQ"):
        assert ask(machine, name, "good morning")[0]["x-coe-expert"] == name.rpartition("/")[2].lower()
    with pytest.raises(AssertionError, match="already exists and is not changed"):
        machine.run("coe init gguf")
    assert "command:" in (machine.folder / "serve.yaml").read_text()


Made = Callable[..., Path]


def test_a_card_is_seen_by_the_drivers_library_and_named_in_the_file(machine: Reader) -> None:
    machine.run("coe init gguf --dry-run")
    text = machine.said["coe init gguf --dry-run"]
    assert "# card 0: Pretend 24GB, 24.0 GiB, of which experts may take" in text
    assert "platform: cuda" in text
    assert os.environ.get(VARIABLE) is None
