"""What this process asks of the machine once, before it serves: allocator, inspection, open files, state lock, log.

No line of the log has a character that a terminal obeys or that begins a line: a message may quote another server.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from coe_server.errors import CoeError
from coe_server.system.files import open_private, private_folder
from coe_server.system.visible import visible, visible_lines

_M_ARENA_MAX = -8  # glibc's malloc.h


def share_one_arena() -> bool:
    """All threads allocate from one arena from now on; whether the C library supports it.

    glibc gives each thread one of its own, up to eight for each processor, and what is freed in one is of no use to
    the others: a server's few helping threads hold megabytes that way. One thread at a time has the interpreter
    anyway. Other C libraries have no such arenas.
    """
    with suppress(AttributeError, OSError):
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))
    return False


def give_back_free_memory() -> bool:
    """Hand what is free to the system again; whether the C library supports it. Takes about a millisecond.

    glibc does so by itself only at the end of an arena: what a start or a reload needed for a moment stays otherwise.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
        return True
    return False


_PR_SET_DUMPABLE = 4  # Linux's prctl.h


def refuse_inspection() -> bool:
    """From now on only root can read this process' memory, first environment and open files; whether that could be had.

    They belong to root, no other process can trace this one, and it leaves no core dump (prctl(2), PR_SET_DUMPABLE).
    A program that this process starts can be looked into again.
    """
    with suppress(AttributeError, OSError):
        return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
    return False


logger = logging.getLogger(__name__)

ENOUGH = 65_536  # every request under way has two: its caller's and its engine's
QUIET_SECONDS = 60.0  # between two lines in the log


def allow_many_open_files() -> None:
    """Raise the soft limit as far as the hard one and `ENOUGH` allow.

    A shell and, since containerd 2, a container give a process 1,024: a few hundred streams at once.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class OpenFilesWatch:
    """Says when no more can be opened, once a minute.

    It has to look: the event loop closes a connection that it cannot accept (libuv's way) and reports nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until = clock()

    def look(self) -> None:
        """Costs microseconds."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE} and self._clock() >= self._quiet_until:
                self._quiet_until = self._clock() + QUIET_SECONDS
                logger.error("%s: new connections are closed without an answer; %s", *_told(error))


def _told(error: OSError) -> tuple[str, str]:
    """What is used up, and what to do about it."""
    if error.errno == errno.ENFILE:
        return "the system's limit of open files is reached (fs.file-max)", "raise it with sysctl"
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"the limit of open files is reached ({limit} for this process, connections are among them)",
        "raise it (ulimit -n, LimitNOFILE= of systemd, ulimits of a container) and start the server again",
    )


LOCK_FILE = "server.lock"
_LONGEST_NAME_BYTES = 200


@contextmanager
def state_lock(folder: Path) -> Iterator[None]:
    """Held for a server's life; the kernel lets go of it however the server ends. Raises CoeError if another holds it.

    Where no file can be made nothing is held: the first write there reports why.
    """
    with ExitStack() as held:
        with suppress(OSError):
            private_folder(folder)
            file = held.enter_context(FileIO(_opened(folder / LOCK_FILE), "a+"))  # no program that we start inherits it
            _lock(file, folder)
        yield


def _opened(file: Path) -> int:
    try:
        return open_private(file, os.O_RDWR | os.O_APPEND)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise CoeError(f"state_directory: {file} is a symbolic link, and it would be written to; remove it") from error


def _lock(file: FileIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CoeError(
            f"state_directory: {folder} is another server's ({_holder(file)}); give this one a state_directory of its"
            " own, or stop the other"
        ) from error
    except OSError as error:
        logger.warning("%s cannot be locked (%s): give no other server this state_directory", folder, error)
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())


def _holder(file: FileIO) -> str:
    """The process that wrote its name last; it may be about to write it."""
    file.seek(0)
    return file.read(_LONGEST_NAME_BYTES).decode(errors="replace") or "it is just starting"


Format = Literal["auto", "json", "text"]
_INDENT = "    "


def write_log_to_stderr(form: Format) -> None:
    """From now on every record goes to standard error; `auto` is text on a terminal and JSON anywhere else."""
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines() if as_text else JsonLines())
    for unused in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):  # no line tells of these
        setattr(logging, unused, False)
    logging._srcfile = None  # nor of the caller's file (docs: logging, Optimization)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True).replace("\x7f", r"\u007f")  # the only control that JSON leaves


class TextLines(logging.Formatter):
    """`time LEVEL logger: message key=value ...` on one line, a value written as JSON; a traceback stands below it,
    indented, so that nothing in it looks like a line of the log."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is the standard library's
        fields = getattr(record, "fields", {})
        pairs = (f" {key}={json.dumps(value)}" for key, value in fields.items() if value is not None)
        return visible(super().formatMessage(record) + "".join(pairs))

    def formatException(self, ei: Any) -> str:  # noqa: N802  as above
        return "\n".join(_INDENT + line for line in visible_lines(super().formatException(ei)).split("\n"))
