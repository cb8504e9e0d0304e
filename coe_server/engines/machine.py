"""How much memory this machine has for us. Reads /proc, the control group and asks the NVIDIA driver."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from coe_server.engines.device_memory import device_bytes
from coe_server.errors import ConfigError, EngineError


def available_host_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that can be had: what the kernel calls available, or a control group's limit if that is less."""
    return min([_memory_available(proc), *_group_limits(proc, cgroups)])


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


def _group_limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Bytes, of the groups of this process, each within the next: a container's seem to be the outermost, a service's
    are not."""
    for controllers, place in _own_groups(proc):
        if "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        elif not controllers:
            root, name = cgroups, "memory.max"
        else:
            continue
        for folder in (place, *place.parents):
            if (limit := _cgroup_bytes(root / folder / name)) is not None:
                yield limit


def _own_groups(proc: Path) -> Iterator[tuple[str, Path]]:
    """Controllers and place, below the root of their hierarchy, of each group that this process is in."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/", "0:memory:/"]
    for line in lines:
        _, controllers, place = line.split(":", 2)
        yield controllers, Path(place.lstrip("/"))


def _cgroup_bytes(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" means no limit
