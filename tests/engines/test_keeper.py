"""The keeper by itself: what it starts ends with it, whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from coe_server.engines import keeper
from coe_server.engines.process_memory import process_tree

from .conftest import eventually, runs

FAMILY = """
import json, os, signal, subprocess, sys, time
wait = [sys.executable, "-c", "import time; time.sleep(1e6)"]
subprocess.call([sys.executable, "-c", f"import subprocess; subprocess.Popen({wait}, start_new_session=True)"])
child = subprocess.Popen(wait)
print(json.dumps([os.getpid(), child.pid]), flush=True)
time.sleep(1e6)
"""

SHARED = """
import mmap, os, sys, time
maps = [mmap.mmap(os.open(path, os.O_RDWR), 4096) for path in sys.argv[1:]]
print("mapped", flush=True)
time.sleep(1e6)
"""


class Kept:
    """A keeper started as the server starts it."""

    def __init__(self, run_directory: Path, *command: str) -> None:
        run_directory.mkdir()
        reading_end, self.pipe = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(reading_end), str(run_directory), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(reading_end,),
            start_new_session=True,
        )
        os.close(reading_end)

    def first_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def close_pipe(self) -> None:
        os.close(self.pipe)
        self.pipe = -1

    def finish(self) -> int:
        status = self.process.wait(timeout=30)
        if self.pipe >= 0:
            self.close_pipe()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status


def test_everything_ends_when_the_pipe_closes_even_what_left_its_family_and_session(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "run", sys.executable, "-c", FAMILY)
    engine, child = json.loads(kept.first_line())
    tree = process_tree(kept.process.pid)
    assert {engine, child} < set(tree)
    assert len(tree) == 4, "keeper, engine, child and the orphan that came back to the keeper"
    kept.close_pipe()
    assert kept.finish() == 128 + 9
    assert not any(runs(pid) for pid in tree)
    assert not (tmp_path / "run").exists()


def test_everything_ends_when_the_engine_does_and_its_status_is_told(tmp_path: Path) -> None:
    script = FAMILY.replace("time.sleep(1e6)\n", "sys.exit(7)\n")
    kept = Kept(tmp_path / "run", sys.executable, "-c", script)
    _, child = json.loads(kept.first_line())
    assert kept.finish() == 7
    assert not runs(child)
    assert not (tmp_path / "run").exists()


def test_sigterm_is_passed_on_and_the_engine_may_end_in_order(tmp_path: Path) -> None:
    script = "import signal, sys; print('up', flush=True); signal.sigwait([signal.SIGTERM]); sys.exit(5)"
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); " + script
    kept = Kept(tmp_path / "run", sys.executable, "-c", blocked)
    assert kept.first_line() == "up\n"
    kept.process.terminate()
    assert kept.finish() == 5


def test_a_killed_keeper_takes_the_engine_itself_along(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "run", sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1e6)")
    assert kept.first_line() == "up\n"
    _, engine = process_tree(kept.process.pid)
    kept.process.kill()
    kept.finish()
    assert eventually(lambda: not runs(engine))


def test_an_unknown_command_is_said_in_a_sentence(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "run", "/nowhere/vllm")
    assert kept.process.stderr is not None
    assert kept.process.stderr.read() == b"cannot run /nowhere/vllm: No such file or directory\n"
    assert kept.finish() == 127


@pytest.mark.parametrize(("name", "removed"), [("psm_of_a_killed_engine", True), ("somebodys_model", False)])
def test_only_an_engines_own_shared_memory_is_removed(tmp_path: Path, name: str, removed: bool) -> None:
    block = SharedMemory(name=f"{name}_{os.getpid()}", create=True, size=4096)
    path = Path("/dev/shm", block.name)
    try:
        kept = Kept(tmp_path / "run", sys.executable, "-c", SHARED, str(path))
        assert kept.first_line() == "mapped\n"
        kept.close_pipe()
        kept.finish()
        assert path.exists() is not removed
    finally:
        block.close()
        path.touch()  # so that the block can be removed, and be forgotten by Python's own tracker, either way
        block.unlink()
