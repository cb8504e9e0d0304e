"""A pretend machine with CUDA cards for tests, and models whose files have their true sizes and no bytes."""

from __future__ import annotations

import json

import pytest

from tests.cuda import rules
from tests.cuda.cards import GIB

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
    """Environment for stand-ins: they ask vLLM itself where it is installed."""
    with rules.rules_of_vllm(tmp_path_factory.mktemp("rules")) as environment:
        yield environment


@pytest.fixture
def make_model(tmp_path):
    """A folder like a downloaded model: sparse weight files of the given size."""

    def make(name, size_bytes=FILES, **more):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(QWEN_7B | more))
        with (folder / "model.safetensors").open("wb") as file:
            file.truncate(size_bytes)
        return folder

    return make
