"""How much memory this machine has for us. Reads /proc, the control group and asks the NVIDIA driver."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np

from coe_server.engines.device_memory import device_bytes
from coe_server.errors import ConfigError, EngineError


def available_host_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that can be had: what the kernel calls available, or the control group's limit if that is less."""
    limits = (_cgroup_bytes(cgroups / name) for name in ("memory.max", "memory/memory.limit_in_bytes"))
    return min([_memory_available(proc), *(limit for limit in limits if limit is not None)])


def free_host_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that could be taken now.

    In a control group it is rather too little: page cache counts as used there.
    """
    free = [_memory_available(proc)]
    for names in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        limit, used = (_cgroup_bytes(cgroups / name) for name in names)
        if limit is not None and used is not None:
            free.append(limit - used)
    return min(free)


def card_bytes() -> int:
    """Memory of the card that engines use. Raises ConfigError where its size cannot be read."""
    try:
        return device_bytes().total
    except EngineError as error:
        raise ConfigError(f"memory.device: {error}; give the size in bytes, e.g. 70GiB") from error


def copy_bytes_per_second(size_bytes: int = 64 * 2**20, rounds: int = 3) -> float:
    """How fast one thread copies memory here: the best of a few rounds over pages that have been touched."""
    source, target = np.zeros(size_bytes, np.uint8), np.zeros(size_bytes, np.uint8)
    source[:], target[:] = 1, 2
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return size_bytes / best


def _memory_available(proc: Path) -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE)
    assert match is not None, "Linux has had MemAvailable since 3.14"
    return int(match[1]) * 1024


def _cgroup_bytes(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" means no limit
