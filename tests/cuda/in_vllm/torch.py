"""Replaces torch in a stand-in engine: what our worker's extension uses, read from the pretend cards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

_rank: Any = None


def of_rank(rank: Any) -> None:
    global _rank  # noqa: PLW0603  one rank in a process, as with the real one
    _rank = rank


def _memory_reserved(device: Any = None) -> int:
    """torch.cuda.memory_reserved: the sleeping pool's segments count, mapped or not (alloc_block)."""
    return sum(segment["total_size"] for segment in _memory_snapshot())


def _memory_snapshot(mempool_id: Any = None, include_traces: bool = True) -> list[dict[str, int]]:
    """torch.cuda.memory_snapshot: the segments of torch's own allocator and of the sleeping pool, by address."""
    own = {1 << 40: _rank.held("activations"), 2 << 40: _rank.held("graphs")}
    pool = {address: data.handle[1] for address, data in _rank.pool().items()}
    if _rank.options["sleep_mode_offload_cudagraph"]:
        del own[2 << 40]
    return [{"address": address, "total_size": size} for address, size in (own | pool).items()]


def _mem_get_info(device: Any = None) -> tuple[int, int]:
    reading = _rank.cards.reading(_rank.card)
    return reading.free, reading.total


def _host_memory_stats() -> dict[str, int]:
    """torch.cuda.host_memory_stats: pinned host memory of this process; empty before CUDA is used."""
    return {"allocated_bytes.current": _rank.pinned}


cuda = SimpleNamespace(
    memory_reserved=_memory_reserved,
    max_memory_reserved=_memory_reserved,
    memory_snapshot=_memory_snapshot,
    get_device_properties=lambda device=None: SimpleNamespace(uuid=_rank.cards.uuid(_rank.card).removeprefix("GPU-")),
    mem_get_info=_mem_get_info,
    host_memory_stats=_host_memory_stats,
    synchronize=lambda device=None: None,
    current_device=lambda: 0,
)
accelerator = SimpleNamespace(get_memory_info=_mem_get_info, synchronize=lambda: None)
