"""Low-rank adapters on a Llama: put into its linear layers, saved and loaded in PEFT's format. Knows no topic."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."


class LowRank(nn.Module):
    """A frozen linear layer plus `scale * B @ A`; B starts at zero, so at first it answers as the layer does."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        kind = base.weight.dtype
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, dtype=kind))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=kind))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (x @ self.lora_A.T @ self.lora_B.T) * self.scale


def adapt(model: LlamaForCausalLM, rank: int, alpha: int) -> dict[str, LowRank]:
    """Freezes the model and puts a low-rank layer around every target; returns them by the target's path."""
    model.requires_grad_(False)
    paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear) and _name(path) in TARGETS]
    layers = {}
    for path in paths:
        parent = model.get_submodule(path.rpartition(".")[0])
        layers[path] = LowRank(model.get_submodule(path), rank, alpha / rank)
        setattr(parent, _name(path), layers[path])
    return layers


def save_adapter(layers: dict[str, LowRank], folder: Path, rank: int, alpha: int, base: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, the matrices in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{path}.lora_{letter}.weight": matrix.detach().to(torch.bfloat16).contiguous()
        for path, layer in layers.items()
        for letter, matrix in (("A", layer.lora_A), ("B", layer.lora_B))
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").chmod(0o644)  # the library makes it readable by its owner only
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def use_adapter(model: LlamaForCausalLM, folder: Path) -> None:
    """Puts a saved adapter into its base, both in the base's number format."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for path, layer in adapt(model, config["r"], config["lora_alpha"]).items():
        layer.lora_A.data.copy_(tensors[f"{_PREFIX}{path}.lora_A.weight"])
        layer.lora_B.data.copy_(tensors[f"{_PREFIX}{path}.lora_B.weight"])


def _name(path: str) -> str:
    return path.rpartition(".")[2]
