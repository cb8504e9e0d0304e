"""A pretend machine with CUDA cards for tests, and models as sparse files of their true sizes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cuda import rules
from tests.cuda.cards import GIB, VARIABLE, Cards

FILES = round(5.2 * GIB)
QWEN_7B = {  # Qwen2.5-7B-Instruct-AWQ: 28 layers of 4 key and value heads; files of 5.2 GiB
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "quantization_config": {"bits": 4, "group_size": 128, "quant_method": "awq"},
}


@pytest.fixture(scope="session")
def vllm_rules(tmp_path_factory):
    """Environment that makes stand-ins use vLLM's own rules, if it is installed."""
    with rules.rules_of_vllm(tmp_path_factory.mktemp("rules")) as environment:
        yield environment


@pytest.fixture
def make_model(tmp_path):
    """A folder like a model's: sparse weight files of the given size."""

    def make(name, size_bytes=FILES, **more):
        return fill(tmp_path / "models" / name, size_bytes, more)

    return make


@pytest.fixture
def downloaded(tmp_path):
    """Puts a model under its hub id into the cache below `tmp_path / "hf"`, as huggingface_hub does."""

    def put(model, size_bytes=FILES, **more):
        repository = tmp_path / "hf/hub" / f"models--{model.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("0123abcd")
        snapshot = fill(repository / "snapshots/0123abcd", size_bytes, more)
        (snapshot / "tokenizer.json").write_text("{}")
        return model

    return put


def fill(folder, size_bytes, changes):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(QWEN_7B | changes))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size_bytes)
    return folder


@pytest.fixture
def pretend_machine(tmp_path, vllm_rules):
    """Make a machine with these cards and this much free RAM: returns its cards and the environment of a server."""

    def make(*totals, ram):
        cards = Cards.create(tmp_path / "cards.json", totals)
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text(f"MemAvailable: {ram // 1024} kB\n")
        (tmp_path / "proc/self/cgroup").write_text("")
        driver = Path(__file__).with_name("driver")
        pretended = {VARIABLE: str(tmp_path / "cards.json"), "NVIDIA_PRETEND_PROC": str(tmp_path / "proc")}
        paths = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{driver}", "HF_HOME": str(tmp_path / "hf")}
        return cards, {**os.environ, **vllm_rules, **pretended, **paths}

    return make
