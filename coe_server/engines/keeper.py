"""Keeps one engine's processes together: started by the server, outlives it by milliseconds, leaves nothing behind.

    python -I -S keeper.py PIPE_FD RUN_DIRECTORY COMMAND...

Standard library only, and nothing of ours: it must start fast and work while the server dies. It ends everything when
the pipe from the server closes (the server is gone, even by SIGKILL) or when the command ends; SIGTERM is passed on.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import shutil
import signal
import sys
import time
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
TRACKER_SECONDS = 2.0
_TRACKER_POLL_SECONDS = 0.02
# What Python, torch and NCCL leave in shared memory when they are killed. Never any other file there: it may be the
# user's own model.
_LEFTOVER = re.compile(r"/dev/shm/(psm_|sem\.mp-|torch_|nccl-)[^/]*")


def main() -> int:
    pipe, run_directory, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    os.set_inheritable(pipe, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the engine become our children, so none can slip away
    engine = _Engine(command)
    try:
        while engine.status is None and not _server_gone(pipe, engine.signals):
            engine.reap()
    finally:
        _end_descendants(engine)
        shutil.rmtree(run_directory, ignore_errors=True)
    return engine.exit_code()


class _Engine:
    """The command's process, and the signals that reach us."""

    def __init__(self, command: list[str]) -> None:
        self.status: int | None = None
        self.pid = 0
        self.signals, writing_end = os.pipe()
        os.set_blocking(self.signals, False)
        os.set_blocking(writing_end, False)
        signal.set_wakeup_fd(writing_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # only to wake `select`
        signal.signal(signal.SIGTERM, self._pass_on)
        pid = os.fork()
        if pid == 0:
            _become(command)
        self.pid = pid

    def _pass_on(self, number: int, frame: object) -> None:
        if self.pid and self.status is None:
            os.kill(self.pid, number)

    def reap(self) -> None:
        """Collect every child that ended; remember how the engine itself did."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.status = status

    def exit_code(self) -> int:
        if self.status is None:
            return 1
        code = os.waitstatus_to_exitcode(self.status)
        return 128 - code if code < 0 else code  # as a shell reports a signal


def _become(command: list[str]) -> None:
    """The forked child: turns into the engine, and dies if we are killed before we could end it."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores the last two; a program inherits that
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    finally:
        os._exit(127)


def _server_gone(pipe: int, signals: int) -> bool:
    """Wait for the next event; true when the server's end of the pipe is closed."""
    ready, _, _ = select.select([pipe, signals], [], [])
    if signals in ready:
        _forget_signals(signals)
    return pipe in ready and os.read(pipe, 512) == b""


def _forget_signals(signals: int) -> None:
    with suppress(BlockingIOError):
        os.read(signals, 512)


def _end_descendants(engine: _Engine) -> None:
    """SIGKILL until nobody is left; new children of the dying come to us and die in the next round.

    Python's resource trackers go last and by themselves: with all others dead they remove the semaphores and shared
    memory that those left behind. Only one that takes too long is killed as well.
    """
    leftovers: set[str] = set()
    patience_ends = time.monotonic() + TRACKER_SECONDS
    while children := _descendants():
        doomed = [pid for pid in children if time.monotonic() > patience_ends or not is_resource_tracker(pid)]
        for pid in doomed:
            leftovers |= _shared_memory_of(pid)
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        select.select([engine.signals], [], [], _TRACKER_POLL_SECONDS)  # SIGCHLD, or a grandchild's end nobody tells
        _forget_signals(engine.signals)
        engine.reap()
    for path in leftovers:
        with suppress(OSError):
            os.unlink(path)


def is_resource_tracker(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as words:
        return b"multiprocessing.resource_tracker" in words.read()
    return False


def _descendants() -> list[int]:
    found: list[int] = []
    queue = [os.getpid()]
    for pid in queue:  # grows while we walk
        children: list[int] = []
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    children.extend(int(child) for child in file.read().split())
        queue.extend(children)
        found.extend(children)
    return found


def _shared_memory_of(pid: int) -> set[str]:
    """Named shared memory the process has mapped; its owner is about to lose the chance to remove it."""
    with suppress(OSError), open(f"/proc/{pid}/maps") as maps:
        fields = (line.rstrip("\n").split(maxsplit=5) for line in maps)
        return {field[5] for field in fields if len(field) == 6 and _LEFTOVER.fullmatch(field[5])}
    return set()


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    sys.exit(main())
