"""Sizes of models: by their files, one format only, and by their published config.json."""

import json
from pathlib import Path

import pytest

from coe_server.engines.model_size import (
    config_bytes,
    downloaded_folder,
    files_bytes,
    hub_cache,
    model_folder,
    read_config,
    token_bytes,
    unfinished_bytes,
    weight_files,
)

GB = 1e9
QWEN25_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 152064,
}
QWEN25_14B = QWEN25_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
}
QWEN3_30B = {
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
GPT_OSS_20B = {
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "quantization_config": {"quant_method": "mxfp4"},
    "vocab_size": 201088,
}
LLAMA31_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


@pytest.mark.parametrize(
    ("config", "published_gb"),  # sizes of the weight files on the hub
    [
        (QWEN25_7B | {"quantization_config": AWQ}, 5.57),
        (QWEN25_14B | {"quantization_config": AWQ}, 9.98),
        (LLAMA31_8B, 16.06),
        (QWEN3_30B, 61.1),
        (QWEN3_30B | {"quantization_config": {"quant_method": "fp8"}}, 31.2),
        (GPT_OSS_20B, 13.76),
        (LLAMA31_8B | {"quantization_config": NVFP4}, 6.0),
    ],
    ids=["7B AWQ", "14B AWQ", "8B", "30B experts", "30B experts FP8", "gpt-oss-20b", "8B NVFP4"],
)
def test_a_config_tells_the_size_of_the_files(config, published_gb):
    assert config_bytes(config) == pytest.approx(published_gb * GB, rel=0.03)


def test_a_vision_models_text_part_counts():
    assert config_bytes({"text_config": LLAMA31_8B, "vision_config": {}}) == config_bytes(LLAMA31_8B)


@pytest.mark.parametrize("config", [{}, {"hidden_size": 10}, {"hidden_size": None, "num_hidden_layers": 1}])
def test_a_config_that_tells_too_little_gives_nothing(config):
    assert config_bytes(config) is None
    assert token_bytes(config) is None


def test_bytes_of_a_token():
    qwen3_8b = {"num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128, "num_attention_heads": 32}
    assert token_bytes(qwen3_8b) == 147_456
    assert (4 << 30) // token_bytes(qwen3_8b) == 29_127
    assert token_bytes(qwen3_8b, tensor_parallel=2) == 147_456 // 2
    assert token_bytes(qwen3_8b, tensor_parallel=16) == 147_456 // 8, "each rank has a head at least"


def write(folder, **sizes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        (folder / name.replace("__", "-").replace("_dot_", ".")).write_bytes(bytes(size))


def test_two_formats_of_the_same_weights_count_once(tmp_path):
    write(tmp_path, **{"consolidated.safetensors": 100, "model-00001-of-00002.safetensors": 60})
    write(tmp_path, **{"model-00002-of-00002.safetensors": 40, "pytorch_model.bin": 100})
    assert files_bytes(tmp_path) == 100
    assert [file.name for file in weight_files(tmp_path)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_the_index_says_which_files_are_loaded(tmp_path):
    write(tmp_path, **{"a.safetensors": 10, "b.safetensors": 20, "model-extra.safetensors": 500})
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors", "three": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert files_bytes(tmp_path) == 30


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": {"one": "missing.safetensors"}}', '{"weight_map": []}', "[" * 100_000]
)
def test_an_index_that_tells_nothing_is_passed_over(tmp_path, index):
    write(tmp_path, **{"model.safetensors": 10})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert files_bytes(tmp_path) == 10


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000])
def test_a_config_that_cannot_be_read_is_empty(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert read_config(tmp_path) == {}


def test_a_folder_without_weights_has_no_size(tmp_path):
    assert files_bytes(tmp_path) is None


def test_a_downloaded_model_is_found_in_the_hubs_cache(tmp_path):
    repository = tmp_path / "hub/models--Qwen--Qwen2.5-7B-Instruct-AWQ"
    blob = repository / "blobs/abc"
    write(blob.parent, abc=70)
    write(repository / "snapshots/c0ffee")
    (repository / "snapshots/c0ffee/model.safetensors").symlink_to(blob)
    write(repository / "refs")
    (repository / "refs/main").write_text("c0ffee\n")
    found = downloaded_folder("Qwen/Qwen2.5-7B-Instruct-AWQ", {"HF_HOME": str(tmp_path)})
    assert found is not None
    assert files_bytes(found) == 70
    assert downloaded_folder("Qwen/other", {"HF_HUB_CACHE": str(tmp_path / "hub")}) is None
    assert downloaded_folder("Qwen/Qwen2.5-7B-Instruct-AWQ", {"HF_HOME": str(tmp_path)}, "c0ffee") == found


NAMES = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize("indexed", [True, False])
def test_a_download_that_was_interrupted_is_not_a_model(tmp_path, indexed):
    snapshot = tmp_path / "models--a--b/snapshots/main"
    write(snapshot, **{NAMES[0]: 60})
    if indexed:
        index = {"weight_map": dict(zip("ab", NAMES, strict=True))}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    cache = {"HF_HUB_CACHE": str(tmp_path)}
    assert model_folder("a/b", cache) is None
    (snapshot / NAMES[1]).symlink_to(tmp_path / "gone")
    assert model_folder("a/b", cache) is None, "a link to a file that is not there yet"
    (snapshot / NAMES[1]).unlink()
    write(snapshot, **{NAMES[1]: 40})
    assert model_folder("a/b", cache) == snapshot
    assert files_bytes(snapshot) == 100


def test_the_cache_is_in_the_home_of_the_engines_user(tmp_path):
    assert hub_cache({"HOME": "/home/engines"}) == Path("/home/engines/.cache/huggingface/hub")
    assert hub_cache({"HOME": "/home/engines", "HF_HUB_CACHE": "~/hub"}) == Path("/home/engines/hub")
    assert hub_cache({"HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert hub_cache({"HOME": "/h", "HF_HOME": "/models"}) == Path("/models/hub")


def test_an_unfinished_download_is_told_in_bytes(tmp_path):
    blobs = tmp_path / "hub" / "models--Qwen--small" / "blobs"
    environment = {"HF_HOME": str(tmp_path)}
    assert unfinished_bytes("Qwen/small", environment) is None
    blobs.mkdir(parents=True)
    (blobs / "aa").write_bytes(b"x" * 300)
    (blobs / "bb.incomplete").write_bytes(b"x" * 50)
    assert unfinished_bytes("Qwen/small", environment) == 350
    (blobs / "bb.incomplete").rename(blobs / "bb")
    assert unfinished_bytes("Qwen/small", environment) is None
