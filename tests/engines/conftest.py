"""Shared by the engines' tests: a stand-in for vLLM, and checks of what is left of a process."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coe_server.engines.vllm.command import VllmLaunch

KV_CACHE_BYTES = 24 << 20
WEIGHTS_BYTES = 8 << 20
DEADLINE_SECONDS = 120.0  # for an event: long enough on a busy machine

StandInLaunch = Callable[..., VllmLaunch]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(WEIGHTS_BYTES))
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, model_folder: Path) -> StandInLaunch:
    """Makes a launch of the stand-in; `fault` is one of its faults."""

    def launch(fault: str = "", **changes: Any) -> VllmLaunch:
        settings: dict[str, Any] = {
            "name": "french",
            "model": str(model_folder),
            "kv_cache_bytes": KV_CACHE_BYTES,
            "log_directory": tmp_path / "logs",
            "platform": "cpu",
            "command": (sys.executable, str(Path(__file__).with_name("stand_in_vllm.py"))),
            "environment": {"STAND_IN_FAULT": fault},
            "start_timeout_seconds": DEADLINE_SECONDS,
        }
        return VllmLaunch(**settings | changes)

    return launch


def eventually(condition: Callable[[], bool]) -> bool:
    """True if the condition becomes true before the deadline; for conditions without an event."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def runs(pid: int) -> bool:
    """True if the process runs. A zombie does not; only its parent can reap it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def run_directory_of(pid: int) -> Path:
    """The run directory in a keeper's arguments."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    folders = [Path(os.fsdecode(word)) for word in words if os.path.basename(word).startswith(b"coe-")]
    assert len(folders) == 1, words
    return folders[0]
