"""What a server and its engines leave behind, seen from outside: processes, shared memory, run directories."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from coe_server.engines.memory import private_bytes, process_tree

_WITHIN_SECONDS = 15.0


@dataclass(slots=True)
class Leftovers:
    """`note` records the server's processes while it runs; `left` finds what remains after it has ended."""

    run_directories: Path  # the server's TMPDIR, which no other process uses
    _seen: set[tuple[int, str]] = field(default_factory=set)  # pid and start time: pids are used again
    _shared: set[Path] = field(default_factory=set)

    def note(self, server: int) -> None:
        for pid in process_tree(server):
            if began := _began(pid):
                self._seen.add((pid, began))
                self._shared |= _shared_memory(pid)

    @property
    def seen(self) -> int:
        return len(self._seen)

    def left(self) -> list[str]:
        """One line for each thing that is still there 15 seconds after the end."""
        deadline = time.monotonic() + _WITHIN_SECONDS
        while (found := self._found()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _found(self) -> list[str]:
        processes = [f"process {pid}" for pid, began in self._seen if _began(pid) == began]
        shared = sorted(path for path in self._shared if path.exists())
        return [
            *processes,
            *(f"shared memory {path}" for path in shared),
            *(f"directory {entry.name}" for entry in self.run_directories.iterdir()),
        ]


def engine_cores(server: int) -> dict[str, int]:
    """Expert -> the process with its weights, for every engine process below `server`."""
    found = {}
    for pid in process_tree(server):
        words = _command(pid)
        if "--served-model-name" in words and not any("keeper.py" in word for word in words):
            below = process_tree(pid)[1:]
            if below:
                found[words[words.index("--served-model-name") + 1]] = max(below, key=private_bytes)
    return found


def is_frozen(pid: int) -> bool:
    """True if the process is stopped by a signal, or has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:
        return True


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _shared_memory(pid: int) -> set[Path]:
    """The named shared memory a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {Path(line.split(maxsplit=5)[5]) for line in lines if "/dev/shm/" in line and "(deleted)" not in line}


def _began(pid: int) -> str:
    """The start time of a process, in the kernel's ticks; empty for one that has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
