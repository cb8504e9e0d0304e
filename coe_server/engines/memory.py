"""Memory of this machine and of processes, from /proc and control groups."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def available_host_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Available host memory: the kernel's MemAvailable, or less if a control group limits it."""
    return min([_memory_available(proc), *_group_limits(proc, cgroups)])


def copy_bytes_per_second(size_bytes: int = 64 * 2**20, rounds: int = 3) -> float:
    """Memory copy speed of one thread: the best of `rounds` over pages already in use."""
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
    """Limits of this process's control groups in bytes, innermost first; a container sees its own group as root."""
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
    """Controllers and path (relative to the hierarchy's root) of each control group of this process."""
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


_PROC = Path("/proc")


def process_tree(root: int) -> list[int]:
    """The process and its living descendants; empty if it is gone."""
    if not (_PROC / str(root)).exists():
        return []
    found = [root]
    for pid in found:  # grows during the loop
        found.extend(_children(pid))
    return found


def private_bytes(root: int) -> int:
    """`RssAnon` summed over the process tree: resident memory without files and memfds."""
    return sum(private_bytes_by_process(root).values())


def private_bytes_by_process(root: int) -> dict[int, int]:
    """The same for each process of the tree, by its id."""
    return {pid: _status_bytes(pid, ("RssAnon:",)) for pid in process_tree(root)}


def resident_bytes(root: int) -> int:
    """Resident memory summed over the process tree, with mapped files, since a program may map its weights."""
    return sum(_status_bytes(pid, ("RssAnon:", "RssFile:", "RssShmem:")) for pid in process_tree(root))


def session_members(session: int) -> list[int]:
    """Every living process of a session, orphans included."""
    pids = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    return [pid for pid in pids if _session(pid) == session]


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            children.extend(int(child) for child in (task / "children").read_text().split())
    except OSError:
        pass  # it has just ended
    return children


def _status_bytes(pid: int, fields_wanted: tuple[str, ...]) -> int:
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith(fields_wanted))
    return sum(int(fields[1]) * 1024 for fields in lines)  # the kernel's "kB" are 1024 bytes


def _session(pid: int) -> int | None:
    """The session of a process; None if it has ended, also for a zombie."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    state, _parent, _group, session = stat.rpartition(")")[2].split()[:4]  # the name may contain spaces and brackets
    return None if state == "Z" else int(session)
