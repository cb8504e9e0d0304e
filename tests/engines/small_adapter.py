"""Makes tiny LoRA adapters, in PEFT's format, and files with the tensors of a tiny base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, WIDE, LAYERS = 8, 12, 2
SHAPES = {  # of a base's linear layers: outputs, inputs
    f"model.layers.{layer}.{name}": shape
    for layer in range(LAYERS)
    for name, shape in {"self_attn.q_proj": (HIDDEN, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE)}.items()
}
TENSORS = {f"{path}.weight": shape for path, shape in SHAPES.items()} | {
    "model.embed_tokens.weight": (32, HIDDEN),
    "model.norm.weight": (HIDDEN,),
}


def make_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    *,
    rank: int = 2,
    seed: int = 0,
    scale: float = 1.0,
    more: Mapping[str, tuple[int, ...]] = {},
    **config: Any,
) -> Path:
    """An adapter for layers of these shapes. `config`: changes to its configuration; `more`: further tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed)
    matrices = {f"base_model.model.{path}.lora_A.weight": (rank, inputs) for path, (_, inputs) in shapes.items()}
    matrices |= {f"base_model.model.{path}.lora_B.weight": (outputs, rank) for path, (outputs, _) in shapes.items()}
    tensors = {
        name: (scale * numbers.standard_normal(shape)).astype(np.float16)
        for name, shape in (matrices | dict(more)).items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    told |= {"base_model_name_or_path": "someone/else", "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(told | config))
    return folder


def make_base(folder: Path, tensors: Mapping[str, tuple[int, ...]] = TENSORS) -> Path:
    """A model folder with tensors of these shapes, and no model in it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, np.float16) for name, shape in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder
