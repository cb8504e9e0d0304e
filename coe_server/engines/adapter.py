"""A LoRA adapter by its own files: its rank and matrices, and whether an engine and a base can take it.

Reads `adapter_config.json` and the header of `adapter_model.safetensors`. A pickle is refused, since it may run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe_server.engines.tensor_headers import tensor_headers
from coe_server.errors import ConfigError
from coe_server.system.visible import brief

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's --max-lora-rank (config/lora.py, MaxLoRARanks)

_LONGEST_CONFIG_BYTES = 1 << 20
_PREFIX = "base_model.model."
_KINDS = {  # the ends of a matrix' name: of which of the two it is, and whether the layer is an embedding
    ".lora_A.weight": ("A", False),
    ".lora_B.weight": ("B", False),
    ".lora_embedding_A": ("A", True),
    ".lora_embedding_B": ("B", True),
}
# Inits that leave the base as it is; others change its weights when PEFT loads the adapter (lora/peft_helper.py).
_PLAIN_INITS = frozenset(("gaussian", "eva", "orthogonal", "mica", "lora_ga"))
# What vLLM would refuse at its start, key -> what it is.
_NOT_TAKEN = {
    "use_dora": "DoRA",
    "modules_to_save": "whole layers beside its low-rank matrices (modules_to_save)",
    "lora_bias": "biases (lora_bias)",
    "alora_invocation_tokens": "Activated LoRA (alora_invocation_tokens)",
    "layer_replication": "repeated layers (layer_replication)",
    "use_bdlora": "block-diagonal LoRA (use_bdlora)",
    "use_qalora": "QA-LoRA (use_qalora)",
}


@dataclass(frozen=True, slots=True)
class Matrices:
    """What an adapter adds to one linear layer: `B @ A` of this rank, for `inputs` and `outputs` of the layer."""

    path: str  # of the layer, as the base names it
    rank: int
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter, as an engine is told of it. `stamp` changes with its files."""

    name: str
    folder: Path
    rank: int  # the largest of its layers'
    size_bytes: int
    layers: tuple[Matrices, ...] = ()
    stamp: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """The kinds of layers that it changes: q_proj, down_proj."""
        return tuple(sorted({one.path.rpartition(".")[2] for one in self.layers}))


def read_adapter(name: str, folder: Path) -> Adapter:
    """The adapter in a folder. Raises ConfigError with a sentence if it is none, or one that vLLM does not take."""
    config = _config(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        pickled = next((one for one in ("adapter_model.bin", "adapter_model.pt") if (folder / one).exists()), None)
        told = f"holds {pickled}, a pickle that may run code; save it as {WEIGHTS}" if pickled else f"has no {WEIGHTS}"
        raise ConfigError(f"{folder} {told}")
    for fault in _faults(config):
        raise ConfigError(f"{folder / CONFIG}: {fault}")
    try:
        shapes = {name: one.shape for name, one in tensor_headers(weights).items()}
        layers = tuple(_layers(shapes))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    rank = max(_told_rank(config), *(one.rank for one in layers))
    if rank > RANKS[-1]:
        raise ConfigError(f"{folder}: its rank is {brief(str(rank))}; vLLM takes up to {RANKS[-1]}")
    return Adapter(name, folder, rank, weights.stat().st_size, layers, stamp_of(folder))


def stamp_of(folder: Path) -> str:
    """A text that changes with the adapter's files; empty if they are gone."""
    try:
        stats = [(folder / name).stat() for name in (CONFIG, WEIGHTS)]
    except OSError:
        return ""
    told = [(one.st_size, one.st_mtime_ns, one.st_ino) for one in stats]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def allowed_rank(rank: int) -> int:
    """The smallest rank that vLLM can be started with for adapters of up to this rank."""
    return next(one for one in RANKS if one >= rank)


def misfit(adapter: Adapter, base: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why the adapter does not fit a base with tensors of these names and shapes; None if it does.

    Shapes decide, not the name of the base it was trained on. A layer is found by its path from `layers.` on: before
    that, models with several parts are named differently. Packed (quantized) and fused layers are not compared.
    """
    known: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in base.items():
        known.setdefault(_tail(name.rpartition(".")[0]), []).append(shape if name.endswith(".weight") else ())
    for one in adapter.layers:
        shapes = known.get(_tail(one.path))
        if shapes is None:
            if ".experts" in one.path:
                continue
            return f"changes layer '{brief(one.path)}', which the base does not have"
        whole = [shape for shape in shapes if len(shape) == 2]
        if whole and (one.outputs, one.inputs) not in whole:
            outputs, inputs = whole[0]
            return (
                f"is for another base: its matrices for '{brief(one.path)}' are for {one.inputs} inputs and"
                f" {one.outputs} outputs, the base has {inputs} and {outputs}"
            )
    return None


def slot_bytes(rank: int, base: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes that an engine reserves for one adapter of this rank: matrices for every linear layer of the base."""
    linear = [shape for name, shape in base.items() if name.endswith(".weight") and len(shape) == 2]
    return sum(2 * rank * (outputs + inputs) for outputs, inputs in linear)


def _tail(path: str) -> str:
    _, found, rest = path.rpartition("layers.")
    return rest if found else path.rpartition(".")[2]


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        with file.open("rb") as there:
            text = there.read(_LONGEST_CONFIG_BYTES + 1)
        config = json.loads(text) if len(text) <= _LONGEST_CONFIG_BYTES else None
    except FileNotFoundError as error:
        raise ConfigError(f"there is no adapter in the folder {folder} ({CONFIG})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} is not an adapter's configuration")
    return config


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    """What vLLM does not take, by the adapter's own configuration."""
    if (kind := config.get("peft_type")) != "LORA":
        yield f"peft_type is {brief(repr(kind))}; only LORA is taken"
    for key, what in _NOT_TAKEN.items():
        if config.get(key):
            yield f"the adapter has {what}, which vLLM does not take"
    if config.get("bias", "none") != "none":
        yield f"the adapter has biases (bias: {brief(str(config['bias']))}), which vLLM does not take"
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        told = brief(repr(init))
        yield f"init_lora_weights is {told}, which changes the base; convert it to a plain adapter with PEFT"
    yield from _unusable_numbers(config)


def _unusable_numbers(config: Mapping[str, Any]) -> Iterator[str]:
    if not _is_count(config.get("r")):
        yield f"r is {brief(repr(config.get('r')))}; it must be a number from 1"
    if not isinstance(config.get("lora_alpha"), int | float) or "target_modules" not in config:
        yield "lora_alpha or target_modules is missing"
    if not all(_is_count(rank) for rank in _patterns(config).values()):
        yield "rank_pattern must have numbers from 1"


def _patterns(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("rank_pattern") or {}
    return found if isinstance(found, Mapping) else {"": None}


def _told_rank(config: Mapping[str, Any]) -> int:
    return int(max(config["r"], *_patterns(config).values(), 1))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Matrices]:
    """The layers by their pairs of matrices. Raises ValueError for a tensor that belongs to no pair."""
    pairs: dict[tuple[str, bool], dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        end = next((end for end in _KINDS if name.endswith(end)), None)
        if end is None:
            told = "DoRA's magnitudes" if "magnitude" in name else "no low-rank matrix"
            raise ValueError(f"tensor '{brief(name)}' is {told}, which vLLM does not take")
        letter, embeds = _KINDS[end]
        path = name.removesuffix(end).removeprefix(_PREFIX)
        pairs.setdefault((path, embeds), {})[letter] = shape
    if not pairs:
        raise ValueError("the adapter has no matrices")
    for (path, embeds), pair in pairs.items():
        shape_a, shape_b = pair.get("A", ()), pair.get("B", ())
        if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != shape_b[1]:
            told = brief(f"{shape_a} and {shape_b}")
            raise ValueError(f"the matrices of layer '{brief(path)}' do not belong together: {told}")
        rank, inputs, outputs = shape_a[0], shape_a[1], shape_b[0]
        # An embedding's weight has a row for each token, so its outputs are its columns.
        yield Matrices(path, rank, outputs, inputs) if embeds else Matrices(path, rank, inputs, outputs)
