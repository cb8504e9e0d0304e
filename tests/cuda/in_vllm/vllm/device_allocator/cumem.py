"""vllm/device_allocator/cumem.py, as far as our worker's extension reads it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


class CuMemAllocator:
    @staticmethod
    def get_instance() -> CuMemAllocator:
        return CuMemAllocator()

    @property
    def pointer_to_data(self) -> dict[int, Any]:
        """Allocations by address; `handle` is (device, size, address, chunks)."""
        rank = torch._rank
        sizes = {"weights": rank.weights, "kv_cache": rank.options["kv_cache_memory_bytes"] or 0}
        return {
            number: SimpleNamespace(handle=(rank.number, size, number, []), tag=tag, is_asleep=rank.asleep)
            for number, (tag, size) in enumerate(sizes.items())
        }
