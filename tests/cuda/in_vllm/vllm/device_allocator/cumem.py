"""Replaces the part of vllm/device_allocator/cumem.py that our worker's extension reads."""

from __future__ import annotations

from typing import Any

import torch


class _OfRank:
    """`CuMemAllocator.instance`: None until something is allocated in it, as without sleep mode."""

    def __get__(self, _: object, owner: Any) -> Any:
        return owner() if torch._rank.options["enable_sleep_mode"] else None


class CuMemAllocator:
    instance = _OfRank()

    @property
    def pointer_to_data(self) -> dict[int, Any]:
        """Allocations by address; `handle` is (device, size, address, chunks)."""
        return torch._rank.pool()
