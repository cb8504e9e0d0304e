"""Size of a model's weights, from its files or, if not downloaded, from its `config.json`. Reads no weights.

Sizes are those of the files that vLLM loads: a quantised model counts with its quantised bytes.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# Index files name each weight file once, so files of the same weights in another format are not counted.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# In vLLM's order: the first pattern with a match is loaded. `consolidated` is Mistral's second format.
_PATTERNS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt", "*.gguf")

_BYTES_OF_TYPE = {"float32": 4.0, "float": 4.0, "float16": 2.0, "half": 2.0, "bfloat16": 2.0}
# Bits per weight including scales and zero points, by definition of the formats:
_SCALE_BITS, _ZERO_SHARE = 16.0, 1.0  # AWQ and GPTQ: a 16-bit scale and a zero point of the weights' width per group
_MXFP4_BITS = 4 + 8 / 32  # OCP microscaling formats: 8-bit scale for 32 values
_NVFP4_BITS = 4 + 8 / 16  # 8-bit scale for 16 values
_BNB_4BIT_BITS = 4 + 32 / 64 / 4  # bitsandbytes NF4, nested scales


def weight_files(folder: Path) -> list[Path]:
    """The weight files in a model's folder that vLLM loads: one format, as listed by its index."""
    for name in _INDEXES:
        if (listed := _indexed(folder / name)) and all((folder / file).exists() for file in listed):
            return [folder / file for file in listed]
    return [folder / name for name in chosen_weights(file.name for file in folder.glob("*") if file.exists())]


def chosen_weights(names: Iterable[str]) -> list[str]:
    """The weight files among these names that vLLM loads: one format."""
    there = sorted(name for name in names if "/" not in name)
    return next((found for pattern in _PATTERNS if (found := fnmatch.filter(there, pattern))), [])


def files_bytes(folder: Path) -> int | None:
    """Size of a folder's weight files, links followed; None if there are none."""
    return sum(file.stat().st_size for file in weight_files(folder)) or None


def is_complete(folder: Path) -> bool:
    """True if no weight file is missing, by the folder's index or by the numbers in their names."""
    for name in _INDEXES:
        if listed := _indexed(folder / name):
            return all((folder / file).exists() for file in listed)
    files = weight_files(folder)
    numbered = [match for file in files if (match := re.search(r"-of-(\d+)\.", file.name))]
    return bool(files) and all(len(numbered) == int(match[1]) for match in numbered)


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's `config.json`; empty if it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def model_folder(model: str, environment: Mapping[str, str], revision: str = "main") -> Path | None:
    """The folder with a model's complete weights: its own, or a snapshot in the hub cache; None if there is none."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder if weight_files(folder) else None
    found = downloaded_folder(model, environment, revision)
    return found if found is not None and is_complete(found) else None


def downloaded_folder(model: str, environment: Mapping[str, str], revision: str = "main") -> Path | None:
    """The snapshot of a hub id in Hugging Face's cache, complete or not; None if there is none."""
    repository = hub_cache(environment) / f"models--{model.replace('/', '--')}"
    try:
        commit = (repository / "refs" / revision).read_text().strip()
    except OSError:
        commit = revision
    snapshot = repository / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def unfinished_bytes(model: str, environment: Mapping[str, str]) -> int | None:
    """Bytes that an unfinished download of a hub id has brought so far; None if there is none.

    huggingface_hub names a file that it is writing `*.incomplete`; an interrupted download leaves it there.
    """
    blobs = hub_cache(environment) / f"models--{model.replace('/', '--')}" / "blobs"
    sizes: dict[str, int] = {}
    with suppress(OSError), os.scandir(blobs) as files:
        for file in files:
            with suppress(OSError):  # it has just been renamed
                sizes[file.name] = file.stat().st_size
    return sum(sizes.values()) if any(name.endswith(".incomplete") for name in sizes) else None


def hub_cache(environment: Mapping[str, str]) -> Path:
    """The cache of huggingface_hub: HF_HUB_CACHE, else below HF_HOME, else below XDG_CACHE_HOME."""
    home = environment.get("HOME", "~")
    caches = environment.get("XDG_CACHE_HOME", f"{home}/.cache")
    hub = environment.get("HF_HUB_CACHE") or f"{environment.get('HF_HOME', f'{caches}/huggingface')}/hub"
    return Path(f"{home}{hub[1:]}" if hub.startswith("~/") else hub).expanduser()


def config_bytes(config: Mapping[str, Any]) -> int | None:
    """Estimated size of a decoder's weight files from its `config.json`; None if the config lacks fields.

    Counts embeddings, attention and (gated) feed-forward layers, experts included. Within 3 % for dense, mixture of
    experts and quantised decoders; without a vision tower.
    """
    text = config.get("text_config", config)
    try:
        counts = _parameters(text)
    except (KeyError, TypeError):
        return None
    plain = _BYTES_OF_TYPE.get(str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype")), 2.0)
    quantised = config.get("quantization_config") or text.get("quantization_config") or {}
    linear = _quantised_bits(quantised, 8 * plain) / 8
    only_experts = quantised.get("quant_method") == "mxfp4"  # gpt-oss: attention is not quantised
    attention = counts["attention"] * (plain if only_experts else linear)
    return round(float(counts["embeddings"] * plain + attention + counts["feed_forward"] * linear))


def token_bytes(config: Mapping[str, Any], value_bytes: float = 2.0, tensor_parallel: int = 1) -> int | None:
    """Bytes of one token's keys and values on one card; None if the config lacks fields.

    2 x layers x key-value heads x head size x bytes of a value; heads are split over the ranks, at least one each.
    """
    text = config.get("text_config", config)
    try:
        heads = max(1, text.get("num_key_value_heads", text["num_attention_heads"]) // tensor_parallel)
        return int(2 * text["num_hidden_layers"] * heads * _head_size(text) * value_bytes)
    except (KeyError, TypeError):
        return None


def _parameters(text: Mapping[str, Any]) -> dict[str, int]:
    hidden, layers, heads = text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]
    size = _head_size(text)
    key_value = text.get("num_key_value_heads", heads) * size
    attention = 2 * hidden * heads * size + 2 * hidden * key_value
    experts = text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts") or 0
    wide = text.get("moe_intermediate_size") or text.get("intermediate_size")
    feed_forward = 3 * hidden * text["intermediate_size"]
    if experts:
        first_dense = text.get("first_k_dense_replace", 0)
        one = 3 * hidden * wide * (experts + (text.get("n_shared_experts") or 0)) + hidden * experts
        feed_forward_all = first_dense * feed_forward + (layers - first_dense) * one
    else:
        feed_forward_all = layers * feed_forward
    matrices = 1 if text.get("tie_word_embeddings", False) else 2
    return {
        "embeddings": matrices * text["vocab_size"] * hidden,
        "attention": layers * attention,
        "feed_forward": feed_forward_all,
    }


def _head_size(text: Mapping[str, Any]) -> int:
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def _quantised_bits(quantised: Mapping[str, Any], plain_bits: float) -> float:
    """Bits of one weight of a linear layer, scales included."""
    method = str(quantised.get("quant_method", ""))
    if method in {"awq", "gptq"}:
        bits, group = float(quantised.get("bits", 4)), max(1, int(quantised.get("group_size", 128)))
        return bits + (_SCALE_BITS + _ZERO_SHARE * bits) / group
    if method == "bitsandbytes":
        return _BNB_4BIT_BITS if quantised.get("load_in_4bit") else 8.0
    if method == "compressed-tensors":
        return _compressed_bits(quantised, plain_bits)
    fixed = {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp4": _MXFP4_BITS, "modelopt_fp4": _NVFP4_BITS, "nvfp4": _NVFP4_BITS}
    if method == "modelopt":
        return _NVFP4_BITS if "FP4" in str(quantised.get("quant_algo", "")).upper() else 8.0
    return fixed.get(method, plain_bits)


def _compressed_bits(quantised: Mapping[str, Any], plain_bits: float) -> float:
    groups = quantised.get("config_groups") or {}
    for group in groups.values():
        weights = group.get("weights") or {}
        if bits := weights.get("num_bits"):
            size = weights.get("group_size") or 0
            return float(bits) + (_SCALE_BITS / size if size > 0 else 0.0)
    return plain_bits


def _indexed(index: Path) -> list[str]:
    try:
        named = json.loads(index.read_text())["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return []
    return sorted({name for name in named if isinstance(name, str) and "/" not in name})
