"""In the place of torch within a stand-in engine: what our worker's extension asks of it, read in the rank's books."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

_rank: Any = None


def of_rank(rank: Any) -> None:
    global _rank  # noqa: PLW0603  one rank in a process, as with the real one
    _rank = rank


def _memory_reserved(device: Any = None) -> int:
    """torch.cuda.memory_reserved: torch's own allocator, without what the sleeping pool maps."""
    return int(_rank.held("activations") + _rank.held("graphs"))


def _mem_get_info(device: Any = None) -> tuple[int, int]:
    reading = _rank.cards.reading(_rank.card)
    return reading.free, reading.total


def _host_memory_stats() -> dict[str, int]:
    """torch.cuda.host_memory_stats: pinned host memory of this process."""
    return {"allocated_bytes.current": _rank.pinned, "reserved_bytes.current": _rank.pinned}


cuda = SimpleNamespace(
    memory_reserved=_memory_reserved,
    max_memory_reserved=_memory_reserved,
    mem_get_info=_mem_get_info,
    host_memory_stats=_host_memory_stats,
    synchronize=lambda device=None: None,
    current_device=lambda: 0,
)
accelerator = SimpleNamespace(get_memory_info=_mem_get_info, synchronize=lambda: None)
