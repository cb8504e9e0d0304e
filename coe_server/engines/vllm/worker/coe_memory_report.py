"""Writes the device and pinned host memory of one vLLM rank to a file for the server.

Runs in vLLM's environment (`--worker-extension-cls coe_memory_report.MemoryReport`), so it imports nothing from
coe_server. vLLM mixes the class into its worker and refuses names that the worker has; these begin with `coe_`.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from vllm.device_allocator.cumem import CuMemAllocator

FOLDER_VARIABLE = "COE_MEMORY_REPORTS"


class MemoryReport:
    """Called through `/collective_rpc`, which returns only the first copy's result; so each rank writes a file."""

    device: Any
    rank: int

    def coe_report_memory(self) -> None:
        allocations = coe_pool_allocations()
        report = {
            "pid": os.getpid(),
            "rank": self.rank,
            "card": coe_card_uuid(self.device),
            "pool_bytes": sum(one.handle[1] for one in allocations.values() if not one.is_asleep),
            "torch_bytes": coe_torch_bytes(allocations),
            "torch_peak_bytes": torch.cuda.max_memory_reserved(self.device),
            "pinned_bytes": torch.cuda.host_memory_stats().get("allocated_bytes.current", 0),
        }
        file = Path(os.environ[FOLDER_VARIABLE]) / f"memory-{os.getpid()}.json"
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(report))
        draft.replace(file)


def coe_pool_allocations() -> dict[int, Any]:
    """Allocations of vLLM's sleep pool by address; empty in an engine without sleep mode, which has no pool."""
    pool = CuMemAllocator.instance
    return {} if pool is None else dict(pool.pointer_to_data)


def coe_torch_bytes(allocations: dict[int, Any]) -> int:
    """Bytes reserved by torch's allocator, without the sleep pool.

    `memory_reserved` includes the pool's segments, mapped or not (c10/cuda/CUDACachingAllocator.cpp, alloc_block).
    """
    segments = torch.cuda.memory_snapshot(include_traces=False)
    return sum(segment["total_size"] for segment in segments if segment["address"] not in allocations)


def coe_card_uuid(device: Any) -> str:
    with suppress(AttributeError, RuntimeError):
        return f"GPU-{torch.cuda.get_device_properties(device).uuid}".replace("GPU-GPU-", "GPU-")
    return ""
