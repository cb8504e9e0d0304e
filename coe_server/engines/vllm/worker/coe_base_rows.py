"""Keeps rows of a step without an adapter free of one, on a CPU.

vLLM 0.32 gives such rows the index -1, and its torch operators take that for the last slot
(`vllm/lora/ops/torch_ops/lora_ops.py`). In a step with requests to adapters the base would answer with that slot's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import torch

_BY_ROW = ("bgmv_expand", "bgmv_expand_slice", "bgmv_shrink")
_BY_SEQUENCE = ("sgmv_expand", "sgmv_expand_slice", "sgmv_shrink")

Operator = Callable[..., None]


def keep_base_rows(operators: ModuleType) -> None:
    """Replace the operators in this module by ones that give rows with a negative index nothing. Once is enough."""
    for names, guarded in ((_BY_ROW, _by_row), (_BY_SEQUENCE, _by_sequence)):
        for name in names:
            operator = getattr(operators, name)
            if not hasattr(operator, "__wrapped__"):
                setattr(operators, name, guarded(operator))


def _by_row(operator: Operator) -> Operator:
    @wraps(operator)
    def guarded(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **named: Any) -> None:
        operator(without_base_rows(inputs, indices), weights, output, indices, *rest, **named)

    return guarded


def _by_sequence(operator: Operator) -> Operator:
    @wraps(operator)
    def guarded(
        inputs: Any, weights: Any, output: Any, starts: Any, lengths: Any, indices: Any, *rest: Any, **named: Any
    ) -> None:
        rows = torch.repeat_interleave(indices, lengths)
        operator(without_base_rows(inputs, rows), weights, output, starts, lengths, indices, *rest, **named)

    return guarded


def without_base_rows(inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The inputs [rows, n] with zeros where a row's index is negative: a product with any matrix is then zero."""
    base = rows < 0
    return inputs.masked_fill(base.unsqueeze(1), 0) if bool(base.any()) else inputs
