"""A pretend machine with CUDA cards: a ledger of their memory in one small file, shared by all processes of a test.

A process holds memory until it frees it or ends, as with a CUDA context. Knows nothing of vLLM.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "NVIDIA_PRETEND_CARDS"  # the file's path; engines inherit variables that begin with NVIDIA_
MIB, GIB = 1 << 20, 1 << 30
DRIVER_BYTES = 450 * MIB  # used by the driver on an idle card: NVML shows 425 to 510 MiB on cards of 24 to 80 GB


class OutOfMemory(Exception):
    """`torch.OutOfMemoryError`: an allocation larger than the free memory of the card."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One card as NVML shows it; bytes."""

    total: int
    used: int

    @property
    def free(self) -> int:
        return self.total - self.used


class Cards:
    """All cards of the machine, by index in PCI order. Every method reads and writes the file under a lock."""

    def __init__(self, path: Path | str | None = None) -> None:
        self._path = Path(path or os.environ[VARIABLE])

    @classmethod
    def create(cls, path: Path, totals: Sequence[int], name: str = "Pretend 24GB", driver: int = DRIVER_BYTES) -> Cards:
        cards = [
            {"uuid": f"GPU-{index:08x}-0000-4000-8000-000000000000", "name": name, "total": total, "others": driver}
            for index, total in enumerate(totals)
        ]
        path.write_text(json.dumps({"cards": cards, "held": [], "lost": []}))
        return cls(path)

    def __len__(self) -> int:
        return len(self._read()["cards"])

    def uuid(self, card: int) -> str:
        return str(self._read()["cards"][card]["uuid"])

    def name(self, card: int) -> str:
        return str(self._read()["cards"][card]["name"])

    def reading(self, card: int) -> Reading:
        state = self._read()
        return Reading(state["cards"][card]["total"], _used(state, card))

    def held(self, pid: int | None = None, card: int | None = None) -> dict[str, int]:
        """Purpose -> bytes, of one process or all, on one card or all."""
        found: dict[str, int] = {}
        for entry in self._read()["held"]:
            if pid in {None, entry["pid"]} and card in {None, entry["card"]}:
                found[entry["what"]] = found.get(entry["what"], 0) + entry["bytes"]
        return found

    def processes(self, card: int) -> dict[int, int]:
        """Bytes of each process on a card."""
        found: dict[int, int] = {}
        for entry in self._read()["held"]:
            if entry["card"] == card:
                found[entry["pid"]] = found.get(entry["pid"], 0) + entry["bytes"]
        return found

    def take(self, card: int, what: str, size_bytes: int) -> None:
        """Raises `OutOfMemory` if the card has less free, or is lost."""
        with self._changed() as state:
            free = state["cards"][card]["total"] - _used(state, card)
            if card in state["lost"] or size_bytes > free:
                raise OutOfMemory(f"CUDA out of memory. Tried to allocate {size_bytes / GIB:.2f} GiB. GPU {card}")
            state["held"].append({"pid": os.getpid(), "card": card, "what": what, "bytes": size_bytes, "until": None})

    def give_back(self, card: int, what: str, after_seconds: float = 0.0) -> None:
        """Free this process's memory for that purpose on the card; the card shows it as free `after_seconds`."""
        with self._changed() as state:
            for entry in state["held"]:
                if (entry["pid"], entry["card"], entry["what"]) == (os.getpid(), card, what):
                    entry["until"] = time.time() + after_seconds

    def neighbour(self, card: int, size_bytes: int) -> None:
        """Set the memory that other programs and the driver hold on the card."""
        with self._changed() as state:
            state["cards"][card]["others"] = size_bytes

    def lose(self, card: int) -> None:
        """The card falls off the bus: allocations fail, and NVML reports it as lost."""
        with self._changed() as state:
            state["lost"].append(card)

    def is_lost(self, card: int) -> bool:
        return card in self._read()["lost"]

    def _read(self) -> dict[str, Any]:
        with self._changed() as state:
            return state

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """Replace the whole file, so that a process that is killed while it writes leaves the old one."""
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self._path.read_text()
            state = json.loads(before)
            state["held"] = [entry for entry in state["held"] if _still_held(entry)]
            yield state
            if (after := json.dumps(state)) != before:
                draft = self._path.with_suffix(".draft")
                draft.write_text(after)
                draft.replace(self._path)


def _used(state: dict[str, Any], card: int) -> int:
    held = sum(entry["bytes"] for entry in state["held"] if entry["card"] == card)
    return int(min(state["cards"][card]["total"], state["cards"][card]["others"] + held))


def _still_held(entry: dict[str, Any]) -> bool:
    """False for memory that was freed, or whose process has ended; a zombie holds no memory either."""
    if entry["until"] is not None and time.time() >= entry["until"]:
        return False
    try:
        return Path(f"/proc/{entry['pid']}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
