"""Keeps one engine's processes together. It outlives the server that starts it by milliseconds and leaves nothing.

    python -I -S keeper.py SERVER_FD RUN_DIRECTORY PREVIOUS_LOG CORES COMMAND... >LOG

Standard library only, and nothing of ours: it must start fast and work while the server dies. It ends everything when
the connection to the server closes (the server is gone, even by SIGKILL) or when the command ends; SIGTERM and its
like are passed on. It alone writes the log, its own standard output, from a pipe that the engine writes to: however
much it writes, and whether the server runs or not, the file stays bounded. What the server sends is sent back once
everything that the engine wrote before is in the log. CORES, `0,1`, are those that the engine may run on; empty: any.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import select
import shutil
import signal
import sys
import time
from contextlib import suppress

LONGEST_BYTES = 16 << 20  # an engine's log and that of its run before, together
DROPPED = b"(earlier lines were dropped)\n"

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

_PIPE_BYTES = 1 << 20  # a burst of lines does not wait for the disk
_PIECE_BYTES = 64 << 10
_OUTSIDERS_SECONDS = 2.0  # how long a process beyond our reach, which holds the pipe, can go on writing
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
TRACKER_SECONDS = 2.0
_TRACKER_POLL_SECONDS = 0.02
# What Python, torch and NCCL leave in shared memory when they are killed. Never any other file there: it may be the
# user's own model.
_LEFTOVER = re.compile(r"/dev/shm/(psm_|sem\.mp-|torch_|nccl-)[^/]*")


def main() -> int:
    server, run_directory, previous_log, cores, command = int(sys.argv[1]), *sys.argv[2:5], sys.argv[5:]
    os.closerange(3, server)  # what the server's own parent left open comes along under uvloop, and is not the engine's
    os.closerange(server + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(server, False)
    os.set_blocking(server, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the engine become our children, so none can slip away
    log = _Log(sys.stdout.fileno(), previous_log)
    engine = _Engine(command, log, [int(core) for core in cores.split(",") if core])
    try:
        while engine.status is None and not _server_gone(server, engine, log):
            engine.reap()
    finally:
        _end_descendants(engine, log)
        log.finish()
        shutil.rmtree(run_directory, ignore_errors=True)
    return engine.exit_code()


class _Log:
    """Moves what the engine writes from a pipe to a bounded file: the newest is kept."""

    def __init__(self, file: int, previous_log: str) -> None:
        self.output, self.writing_end = os.pipe()
        os.set_blocking(self.output, False)
        with suppress(OSError):  # a user's pipes may be limited
            fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.sources = [self.output]  # to wait for; empty once the pipe has no writer left
        self._file = file
        self._previous_log = previous_log

    def take(self) -> bool:
        """Move a piece of what the pipe holds; whether there was any."""
        try:
            piece = os.read(self.output, _PIECE_BYTES)
        except BlockingIOError:
            return False
        if not piece:
            self.sources = []
        with suppress(OSError):  # a full disk costs lines, never the engine
            self._append(piece)
        return bool(piece)

    def catch_up(self) -> None:
        """Move all that the pipe holds now, and not what is written meanwhile without end."""
        for _ in range(_PIPE_BYTES // _PIECE_BYTES + 1):
            if not self.take():
                return

    def finish(self) -> None:
        """The last of it: nothing of ours is left that could write."""
        deadline = time.monotonic() + _OUTSIDERS_SECONDS
        while self.take() and time.monotonic() < deadline:
            pass

    def _append(self, piece: bytes) -> None:
        size = os.lseek(self._file, 0, os.SEEK_END) + len(piece)
        if self._previous_log and size > LONGEST_BYTES // 2:
            with suppress(OSError):  # it is gone, or its folder is another user's
                os.unlink(self._previous_log)  # the older one gives way
            self._previous_log = ""
        if size > LONGEST_BYTES:
            try:
                shorten(self._file, LONGEST_BYTES // 2)
            except OSError:
                os.ftruncate(self._file, 0)  # the newest is kept, if not as much of it
            os.lseek(self._file, 0, os.SEEK_END)
        while piece:
            piece = piece[os.write(self._file, piece) :]


def shorten(file: int, kept_bytes: int) -> None:
    """Leave the newest lines of a file that is longer, `DROPPED` before them.

    They move to its front in place: the end of the file is there at every moment, for a reader and if we are killed.
    """
    source = os.lseek(file, 0, os.SEEK_END) - kept_bytes + len(DROPPED)
    source += os.pread(file, _PIECE_BYTES, source).find(b"\n") + 1  # from the first whole line on, where there is one
    target = os.pwrite(file, DROPPED, 0)
    while piece := os.pread(file, _PIECE_BYTES, source):
        moved = os.pwrite(file, piece, target)
        source, target = source + moved, target + moved
    os.ftruncate(file, target)


class _Engine:
    """The command's process, and the signals that reach us."""

    def __init__(self, command: list[str], log: _Log, cores: list[int]) -> None:
        self.status: int | None = None
        self.pid = 0
        self.signals, writing_end = os.pipe()
        os.set_blocking(self.signals, False)
        os.set_blocking(writing_end, False)
        signal.set_wakeup_fd(writing_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # only to wake `select`
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)
        pid = os.fork()
        if pid == 0:
            _become(command, log.writing_end, cores)
        os.close(log.writing_end)
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


def _become(command: list[str], output: int, cores: list[int]) -> None:
    """The forked child: turns into the engine, and dies if we are killed before we could end it."""
    try:
        os.dup2(output, sys.stdout.fileno())
        os.dup2(output, sys.stderr.fileno())
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *PASSED_ON, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores the last two; a program inherits that
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _bind(cores)
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    finally:
        os._exit(127)


def _bind(cores: list[int]) -> None:
    """A group of ours may have lost these cores since they were chosen: an engine on others is better than none."""
    if not cores:
        return
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        sys.stderr.write(f"cannot bind to the cores {cores}: {error.strerror}\n")
        sys.stderr.flush()


def _server_gone(server: int, engine: _Engine, log: _Log) -> bool:
    """Wait for the next event and look after the log; true when the server's end of the connection is closed."""
    if server not in _look_after(engine, log, server):
        return False
    try:
        if asked := os.read(server, 512):
            log.catch_up()
            os.write(server, asked)
    except OSError:
        return True
    return not asked


def _look_after(engine: _Engine, log: _Log, *others: int, seconds: float | None = None) -> set[int]:
    """Wait for the next event; a piece of output moves, a signal has been seen. All that was ready."""
    events = select.poll()  # not `select`, which knows no descriptor above 1023
    for source in (engine.signals, *log.sources, *others):
        events.register(source, select.POLLIN)
    ready = {source for source, _ in events.poll(None if seconds is None else seconds * 1000)}
    if engine.signals in ready:
        _forget_signals(engine.signals)
    if log.output in ready:
        log.take()
    return ready


def _forget_signals(signals: int) -> None:
    with suppress(BlockingIOError):
        os.read(signals, 512)


def _end_descendants(engine: _Engine, log: _Log) -> None:
    """SIGKILL until none is left; new children of killed processes come to us and are killed in the next round.

    Python's resource trackers go last and by themselves: with all others dead they remove the semaphores and shared
    memory that those left behind. Only one that takes too long is killed as well.
    """
    leftovers: set[str] = set()
    deadline = time.monotonic() + TRACKER_SECONDS
    while children := _descendants():
        doomed = [pid for pid in children if time.monotonic() > deadline or not is_resource_tracker(pid)]
        for pid in doomed:
            leftovers |= _shared_memory_of(pid)
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _look_after(engine, log, seconds=_TRACKER_POLL_SECONDS)  # SIGCHLD, or a grandchild's end, which has no signal
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
