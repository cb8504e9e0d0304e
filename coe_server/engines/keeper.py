"""Supervises one engine's processes and ends them with the server, leaving nothing behind.

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

LONGEST_BYTES = 16 << 20  # an engine's log and its previous run's log together
DROPPED = b"(earlier lines were dropped)\n"

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

_PIPE_BYTES = 1 << 20  # so that a burst of lines does not wait for the disk
_PIECE_BYTES = 64 << 10
_OUTSIDERS_SECONDS = 2.0  # time limit for processes out of reach that hold the pipe open
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
TRACKER_SECONDS = 2.0
_TRACKER_POLL_SECONDS = 0.02
# Shared-memory files that Python, torch and NCCL leave when killed, and vLLM (ranks on a CPU with AVX-512) always. No
# other file may be deleted there: it may be the user's model.
_LEFTOVER = re.compile(r"/dev/shm/(psm_|sem\.mp-|torch_|nccl-|vllm_dist_)[^/]*")


def main() -> int:
    server, run_directory, previous_log, cores, command = int(sys.argv[1]), *sys.argv[2:5], sys.argv[5:]
    os.closerange(3, server)  # uvloop passes on descriptors that the server inherited
    os.closerange(server + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(server, False)
    os.set_blocking(server, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the engine become children of this process
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
    """Moves the engine's output from a pipe to a bounded file, which keeps the newest lines."""

    def __init__(self, file: int, previous_log: str) -> None:
        self.output, self.writing_end = os.pipe()
        os.set_blocking(self.output, False)
        with suppress(OSError):  # pipe sizes may be limited per user
            fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.sources = [self.output]  # polled; empty once the pipe has no writer
        self._file = file
        self._previous_log = previous_log

    def take(self) -> bool:
        """Move one piece of output. Returns False if the pipe was empty."""
        try:
            piece = os.read(self.output, _PIECE_BYTES)
        except BlockingIOError:
            return False
        if not piece:
            self.sources = []
        with suppress(OSError):  # a full disk loses lines but does not stop the engine
            self._append(piece)
        return bool(piece)

    def catch_up(self) -> None:
        """Move the output that is in the pipe now, not what is written meanwhile."""
        for _ in range(_PIPE_BYTES // _PIECE_BYTES + 1):
            if not self.take():
                return

    def finish(self) -> None:
        """Move the remaining output, after all processes have ended."""
        deadline = time.monotonic() + _OUTSIDERS_SECONDS
        while self.take() and time.monotonic() < deadline:
            pass

    def _append(self, piece: bytes) -> None:
        size = os.lseek(self._file, 0, os.SEEK_END) + len(piece)
        if self._previous_log and size > LONGEST_BYTES // 2:
            with suppress(OSError):  # already deleted, or in another user's folder
                os.unlink(self._previous_log)  # the older log is deleted first
            self._previous_log = ""
        if size > LONGEST_BYTES:
            try:
                shorten(self._file, LONGEST_BYTES // 2)
            except OSError:
                os.ftruncate(self._file, 0)  # keep only the newest piece
            os.lseek(self._file, 0, os.SEEK_END)
        while piece:
            piece = piece[os.write(self._file, piece) :]


def shorten(file: int, kept_bytes: int) -> None:
    """Keep only the newest lines of a longer file, with `DROPPED` before them.

    They are moved to the front in place, so that the newest lines are in the file at every moment, even after SIGKILL.
    """
    source = os.lseek(file, 0, os.SEEK_END) - kept_bytes + len(DROPPED)
    source += os.pread(file, _PIECE_BYTES, source).find(b"\n") + 1  # from the first complete line, if any
    target = os.pwrite(file, DROPPED, 0)
    while piece := os.pread(file, _PIECE_BYTES, source):
        moved = os.pwrite(file, piece, target)
        source, target = source + moved, target + moved
    os.ftruncate(file, target)


class _Engine:
    """The command's process, and the signals sent to the keeper."""

    def __init__(self, command: list[str], log: _Log, cores: list[int]) -> None:
        self.status: int | None = None
        self.pid = 0
        self.shared_memory: set[str] = set()  # by path
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
        """Collect all ended children and store the engine's exit status."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.status = status

    def note_shared_memory(self, pids: list[int]) -> None:
        """Remember what these processes map: once a process has ended, its files cannot be told from others."""
        for pid in pids:
            self.shared_memory |= _shared_memory_of(pid)

    def exit_code(self) -> int:
        if self.status is None:
            return 1
        code = os.waitstatus_to_exitcode(self.status)
        return 128 - code if code < 0 else code  # as a shell reports a signal


def _become(command: list[str], output: int, cores: list[int]) -> None:
    """In the forked child: execute the engine, which dies with the keeper."""
    try:
        os.dup2(output, sys.stdout.fileno())
        os.dup2(output, sys.stderr.fileno())
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *PASSED_ON, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores the last two, and programs inherit that
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
    """Wait for the next event and serve the log. Returns True if the server has closed the connection."""
    if server not in _look_after(engine, log, server):
        return False
    try:
        if asked := os.read(server, 512):
            log.catch_up()
            engine.note_shared_memory(_descendants())
            os.write(server, asked)
    except OSError:
        return True
    return not asked


def _look_after(engine: _Engine, log: _Log, *others: int, seconds: float | None = None) -> set[int]:
    """Wait for the next event (output, a signal or other descriptors); returns the ready descriptors."""
    events = select.poll()  # not `select`, which is limited to descriptors below 1024
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
    """Send SIGKILL until no descendant is left; orphans become children of this process and are killed next.

    Python's resource trackers end by themselves at last: once all others are dead, they remove left semaphores and
    shared memory. A tracker that takes too long is killed, too.
    """
    deadline = time.monotonic() + TRACKER_SECONDS
    while children := _descendants():
        doomed = [pid for pid in children if time.monotonic() > deadline or not is_resource_tracker(pid)]
        engine.note_shared_memory(doomed)
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _look_after(engine, log, seconds=_TRACKER_POLL_SECONDS)  # SIGCHLD; the end of a grandchild sends no signal
        engine.reap()
    for path in engine.shared_memory:
        with suppress(OSError):
            os.unlink(path)


def is_resource_tracker(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as words:
        return b"multiprocessing.resource_tracker" in words.read()
    return False


def _descendants() -> list[int]:
    found: list[int] = []
    queue = [os.getpid()]
    for pid in queue:  # grows during the loop
        children: list[int] = []
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    children.extend(int(child) for child in file.read().split())
        queue.extend(children)
        found.extend(children)
    return found


def _shared_memory_of(pid: int) -> set[str]:
    """Named shared memory mapped by the process, which cannot remove it after SIGKILL."""
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
