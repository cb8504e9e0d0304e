"""Replaces vLLM with hostile code of an expert, which looks for the gateway's secrets and prints what it could read."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = b"s3cret"
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
PIDFD_GETFD = 438  # the number of the system call on every architecture


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def succeeds(action: Callable[[], object]) -> bool:
    try:
        return bool(action())
    except OSError:
        return False


def first_byte(path: str) -> bool:
    with open(path, "rb") as file:
        return bool(file.read(1))


def opens(path: str) -> bool:
    with open(path, "rb"):
        return True


def reads_memory_directly(pid: int, address: int) -> bool:
    class Piece(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    taken = ctypes.create_string_buffer(1)
    here, there = Piece(ctypes.addressof(taken), 1), Piece(address, 1)
    got = ctypes.CDLL(None).process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return bool(got == 1)


def takes_a_descriptor(pid: int) -> bool:
    handle = os.pidfd_open(pid)
    return bool(ctypes.CDLL(None).syscall(PIDFD_GETFD, handle, 0, 0) >= 0)


def attaches(pid: int) -> bool:
    libc = ctypes.CDLL(None)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None) != 0:
        return False
    os.waitpid(pid, 0)
    return bool(libc.ptrace(PTRACE_DETACH, pid, None, None) == 0)


def readable(pid: int, address: int) -> list[str]:
    """The parts of a process that this one can access."""
    folder = f"/proc/{pid}"
    ways: dict[str, Callable[[], object]] = {
        "environment": lambda: first_byte(f"{folder}/environ"),
        "memory": lambda: opens(f"{folder}/mem"),
        "memory map": lambda: first_byte(f"{folder}/maps"),
        "open files": lambda: os.readlink(f"{folder}/fd/0"),
        "memory by system call": lambda: reads_memory_directly(pid, address),
        "a descriptor": lambda: takes_a_descriptor(pid),
        "control": lambda: attaches(pid),
    }
    return [name for name, way in ways.items() if succeeds(way)]


def marked() -> Iterator[str]:
    """Processes with the secret in their readable environment."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if MARK in (folder / "environ").read_bytes():
                    yield (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                pass


def main() -> None:
    keeper = os.getppid()
    anchor = ctypes.create_string_buffer(1)
    found = {
        "keeper": readable(keeper, 0),
        "gateway": readable(parent_of(keeper), ctypes.addressof(anchor)),
        "marked": list(marked()),
        "own": [name for name, value in os.environ.items() if MARK.decode() in value],
        "opened": sorted(os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)),
    }
    print("found", json.dumps(found), flush=True)  # noqa: T201  goes to the engine's log


if __name__ == "__main__":
    main()
