"""The keeper by itself: what it starts ends with it, whatever happens, and what that writes is kept, bounded."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from coe_server.engines import keeper
from coe_server.engines.keeper import DROPPED, LONGEST_BYTES
from coe_server.engines.memory import process_tree

from .conftest import DEADLINE_SECONDS, eventually, runs

HALF_BYTES = LONGEST_BYTES // 2

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
    """A keeper started as the server starts it, and the server's end of their connection."""

    def __init__(self, folder: Path, command: tuple[str, ...], log: Path, mode: str) -> None:
        self.run_directory = folder / "run"
        self.run_directory.mkdir()
        self.log, self.previous_log = log, folder / "engine.previous.log"
        self.server, theirs = socket.socketpair()
        self.server.settimeout(DEADLINE_SECONDS)
        words = (str(theirs.fileno()), str(self.run_directory), str(self.previous_log), "", *command)
        with theirs, self.log.open(mode) as output:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, *words],
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def first_line(self) -> str:
        assert eventually(lambda: b"\n" in self.log.read_bytes())
        return self.log.read_text().splitlines()[0]

    def written(self) -> bytes:
        """The log once it holds all that the engine has written."""
        self.server.send(b"?")
        assert self.server.recv(512) == b"?"
        return self.log.read_bytes()

    def kept_bytes(self) -> int:
        """What this log and the one before hold together."""
        total = 0
        for file in (self.log, self.previous_log):
            with suppress(FileNotFoundError):
                total += file.stat().st_size
        return total

    def finish(self) -> int:
        return self.process.wait(timeout=DEADLINE_SECONDS)

    def remove(self) -> None:
        """End whatever is left, even after a test that failed."""
        for pid in process_tree(self.process.pid)[::-1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.server.close()


Keep = Callable[..., Kept]


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    """Has a command kept; none of it is left when the test ends."""
    started: list[Kept] = []

    def start(*command: str, log: Path = tmp_path / "engine.log", mode: str = "w+b") -> Kept:
        started.append(Kept(tmp_path, command, log, mode))
        return started[-1]

    yield start
    for kept in started:
        kept.remove()


def test_everything_ends_when_the_server_does_even_what_left_its_family_and_session(keep: Keep) -> None:
    kept = keep(sys.executable, "-c", FAMILY)
    engine, child = json.loads(kept.first_line())
    tree = process_tree(kept.process.pid)
    assert {engine, child} < set(tree)
    assert len(tree) == 4, "keeper, engine, child and the orphan that came back to the keeper"
    kept.server.close()
    assert kept.finish() == 128 + 9
    assert not any(runs(pid) for pid in tree)
    assert not kept.run_directory.exists()


def test_everything_ends_when_the_engine_does_and_its_status_is_told(keep: Keep) -> None:
    script = FAMILY.replace("time.sleep(1e6)\n", "sys.exit(7)\n")
    kept = keep(sys.executable, "-c", script)
    _, child = json.loads(kept.first_line())
    assert kept.finish() == 7
    assert not runs(child)
    assert not kept.run_directory.exists()


def test_sigterm_is_passed_on_and_the_engine_may_end_in_order(keep: Keep) -> None:
    script = "import signal, sys; print('up', flush=True); signal.sigwait([signal.SIGTERM]); sys.exit(5)"
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); " + script
    kept = keep(sys.executable, "-c", blocked)
    assert kept.first_line() == "up"
    kept.process.terminate()
    assert kept.finish() == 5


@pytest.mark.parametrize("says", ["", "while True: os.write(1, b'blah ' * 1000)"], ids=["silent", "talking"])
def test_a_killed_keeper_takes_the_engine_itself_along(keep: Keep, says: str) -> None:
    script = f"import os, signal, time\nsignal.alarm(600)\nprint('up', flush=True)\n{says}\ntime.sleep(1e6)"
    kept = keep(sys.executable, "-c", script)
    assert kept.first_line()
    _, engine = process_tree(kept.process.pid)
    kept.process.kill()
    kept.finish()
    assert eventually(lambda: not runs(engine))


def test_an_unknown_command_is_said_in_a_sentence(keep: Keep) -> None:
    kept = keep("/nowhere/vllm")
    assert kept.finish() == 127
    assert kept.log.read_text() == "cannot run /nowhere/vllm: No such file or directory\n"


@pytest.mark.parametrize(("name", "removed"), [("psm_of_a_killed_engine", True), ("somebodys_model", False)])
def test_only_an_engines_own_shared_memory_is_removed(keep: Keep, name: str, removed: bool) -> None:
    block = SharedMemory(name=f"{name}_{os.getpid()}", create=True, size=4096)
    path = Path("/dev/shm", block.name)
    try:
        kept = keep(sys.executable, "-c", SHARED, str(path))
        assert kept.first_line() == "mapped"
        kept.server.close()
        kept.finish()
        assert path.exists() is not removed
    finally:
        block.close()
        path.touch()  # so that the block can be removed, and be forgotten by Python's own tracker, either way
        block.unlink()


def test_shared_memory_of_processes_that_end_by_themselves_is_removed_once_the_server_has_asked(keep: Keep) -> None:
    block = SharedMemory(name=f"vllm_dist_{os.getpid()}", create=True, size=4096)
    path = Path("/dev/shm", block.name)
    try:
        kept = keep(sys.executable, "-c", SHARED, str(path))
        assert kept.first_line() == "mapped"
        assert kept.written()
        kept.process.terminate()  # passed on: the process that had it mapped is the first to end
        kept.finish()
        assert not path.exists()
    finally:
        block.close()
        path.touch()  # so that Python's own tracker forgets it
        block.unlink()


# Each writes four times what may be kept, as fast as it can, says that it is done, and stays.
TORRENT = """
import os, time
def write(piece):
    while piece:
        piece = piece[os.write(1, piece):]
for number in range(64):
    {}
write(b"the last word\\n")
open({!r}, "w").close()
time.sleep(1e6)
"""
LINES = 'write(b"".join(b"%06d blah blah\\n" % (number * 65536 + line) for line in range(65536)))'
ONE_LINE = 'write(b"blah" * (1 << 18))'
BYTES = "write(bytes(range(256)) * 4096)"


@pytest.mark.parametrize("words", [LINES, ONE_LINE, BYTES], ids=["lines", "one line", "bytes"])
def test_the_newest_of_what_a_fast_engine_writes_is_kept_and_never_more_than_the_limit(
    keep: Keep, tmp_path: Path, words: str
) -> None:
    (tmp_path / "engine.previous.log").write_bytes(bytes(HALF_BYTES))
    done, most = tmp_path / "done", 0
    kept = keep(sys.executable, "-c", TORRENT.format(words, str(done)))

    def all_written() -> bool:
        nonlocal most
        most = max(most, kept.kept_bytes())
        return done.exists()

    assert eventually(all_written)
    log = kept.written()
    assert HALF_BYTES < most <= LONGEST_BYTES
    assert HALF_BYTES - (1 << 16) < len(log) <= LONGEST_BYTES
    assert log.startswith(DROPPED)
    assert log.endswith(b"the last word\n")
    assert not kept.previous_log.exists(), "the older one gave way"
    if words is LINES:
        numbers = [int(line.split()[0]) for line in log.removeprefix(DROPPED).splitlines()[:-1]]
        assert numbers == list(range(numbers[0], 64 * 65536)), "whole lines, and every one of the newest"
    elif words is ONE_LINE:
        assert set(log.removeprefix(DROPPED)[: 1 << 20]) == set(b"blah")


def test_a_log_that_cannot_be_shortened_begins_anew(keep: Keep, tmp_path: Path) -> None:
    done = tmp_path / "done"
    kept = keep(sys.executable, "-c", TORRENT.format(ONE_LINE, str(done)), mode="wb")  # it cannot be read
    assert eventually(done.exists)
    log = kept.written()
    assert len(log) <= LONGEST_BYTES
    assert log.endswith(b"the last word\n")


def test_the_log_of_the_run_before_stays_while_there_is_room_for_both(keep: Keep, tmp_path: Path) -> None:
    (tmp_path / "engine.previous.log").write_text("the run before\n")
    done = tmp_path / "done"
    kept = keep(sys.executable, "-c", TORRENT.format("write(b'blah' * 20_000)", str(done)))
    assert eventually(done.exists)
    assert len(kept.written()) == 64 * 80_000 + len("the last word\n")
    assert kept.previous_log.read_text() == "the run before\n"


def test_the_last_words_of_an_engine_are_in_its_log_when_the_keeper_ends(keep: Keep) -> None:
    kept = keep(sys.executable, "-c", "import os; os.write(1, b'blah ' * 100_000 + b'\\nlast'); os.abort()")
    assert kept.finish() == 128 + 6
    assert kept.log.read_bytes() == b"blah " * 100_000 + b"\nlast"


def test_a_log_that_cannot_be_written_costs_lines_and_not_the_engine(keep: Keep) -> None:
    kept = keep(
        sys.executable,
        "-c",
        "import os; [os.write(2, bytes(1 << 20)) for _ in range(8)]",
        log=Path("/dev/full"),
        mode="wb",
    )
    assert kept.finish() == 0


def test_what_an_engine_leaves_behind_talking_does_not_hold_up_its_end(keep: Keep) -> None:
    talker = "import os, signal; signal.alarm(600)\nwhile True: os.write(1, b'blah\\n')"
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {talker!r}], start_new_session=True)"
    kept = keep(sys.executable, "-c", script + "; print('ended', flush=True); sys.exit(3)")
    assert kept.finish() == 3
    assert b"ended\n" in kept.log.read_bytes()


@pytest.mark.parametrize("talks", [False, True])
def test_a_process_out_of_reach_that_holds_the_output_does_not_hold_up_the_end(keep: Keep, talks: bool) -> None:
    kept = keep(sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1e6)")
    assert kept.first_line() == "up"
    _, engine = process_tree(kept.process.pid)
    outsider = os.open(f"/proc/{engine}/fd/1", os.O_WRONLY)

    def talk() -> None:
        with suppress(BrokenPipeError):
            while True:
                os.write(outsider, b"blah\n" * 1000)

    talking = threading.Thread(target=talk)
    try:
        if talks:
            talking.start()
        kept.server.close()
        assert kept.finish() == 128 + 9
    finally:
        kept.remove()
        if talks:
            talking.join()
        os.close(outsider)
