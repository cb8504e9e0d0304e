"""Set-up of the process before it serves: allocator, protection from inspection, open files, state lock, log.

Log lines contain no control characters and no line breaks: a message may quote another server.
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
    """Make all threads allocate from one arena. Returns False if the C library does not support it.

    By default glibc creates up to eight arenas per processor, and memory freed in one cannot be used in another: a
    few helper threads would hold megabytes. With the interpreter lock, one arena costs no speed.
    """
    with suppress(AttributeError, OSError):
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))
    return False


def give_back_free_memory() -> bool:
    """Return free memory to the system, in about a millisecond. Returns False if the C library does not support it.

    By itself glibc returns only the end of an arena, so the temporary memory of a start or a reload would stay.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
        return True
    return False


_PR_SET_DUMPABLE = 4  # Linux's prctl.h


def refuse_inspection() -> bool:
    """Let only root read this process's memory, initial environment and open files. Returns False on failure.

    Other processes cannot trace it, and it writes no core dump (prctl(2), PR_SET_DUMPABLE). Programs that it starts
    are not protected.
    """
    with suppress(AttributeError, OSError):
        return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
    return False


logger = logging.getLogger(__name__)

ENOUGH = 65_536  # a request in progress uses two: one to the client, one to the engine
QUIET_SECONDS = 60.0  # minimum interval between two log lines


def allow_many_open_files() -> None:
    """Raise the soft limit to `ENOUGH`, or to the hard limit if that is lower.

    The default of shells and of containerd 2 is 1,024, enough for a few hundred streams.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class OpenFilesWatch:
    """Logs, once a minute, that no more files can be opened.

    It must probe: the event loop (libuv) closes a connection that it cannot accept without reporting it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until = clock()

    def look(self) -> None:
        """Probe once; takes microseconds."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE} and self._clock() >= self._quiet_until:
                self._quiet_until = self._clock() + QUIET_SECONDS
                logger.error("%s: new connections are closed without an answer; %s", *_told(error))


def _told(error: OSError) -> tuple[str, str]:
    """The limit that is reached, and what to do."""
    if error.errno == errno.ENFILE:
        return "the system's limit of open files is reached (fs.file-max)", "raise it with sysctl"
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"the limit of open files, connections included, is reached ({limit} for this process)",
        "raise it (ulimit -n, LimitNOFILE= of systemd, ulimits of a container) and start the server again",
    )


LOCK_FILE = "server.lock"
_LONGEST_NAME_BYTES = 200


@contextmanager
def state_lock(folder: Path) -> Iterator[None]:
    """Lock the state directory while the server runs; the kernel releases it even after SIGKILL.

    Raises CoeError if another server holds it. If no file can be created, there is no lock: the first write to the
    folder reports the reason.
    """
    with ExitStack() as held:
        with suppress(OSError):
            private_folder(folder)
            file = held.enter_context(FileIO(_opened(folder / LOCK_FILE), "a+"))  # not inherited by child processes
            _lock(file, folder)
        yield


def is_locked(folder: Path) -> bool:
    """True while a server uses this state directory."""
    if not (folder / LOCK_FILE).exists():
        return False
    try:
        with state_lock(folder):
            return False
    except CoeError:
        return True


def _opened(file: Path) -> int:
    try:
        return open_private(file, os.O_RDWR | os.O_APPEND)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise CoeError(f"state_directory: {file} must not be a symbolic link; remove it") from error


def _lock(file: FileIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CoeError(
            f"state_directory: {folder} is used by another server ({_holder(file)}); give this server its own"
            " state_directory, or stop the other server"
        ) from error
    except OSError as error:
        logger.warning("state_directory: cannot lock %s (%s); no other server may use it", folder, error)
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())


def _holder(file: FileIO) -> str:
    """The lock holder's process and host, as written in the file; it may not have written them yet."""
    file.seek(0)
    return file.read(_LONGEST_NAME_BYTES).decode(errors="replace") or "just starting"


Format = Literal["auto", "json", "text"]
_INDENT = "    "


def write_log_to_stderr(form: Format) -> None:
    """Send all log records to standard error. `auto` means text on a terminal, JSON otherwise."""
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines() if as_text else JsonLines())
    for unused in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):  # not in the output
        setattr(logging, unused, False)
    logging._srcfile = None  # no caller's file either (docs: logging, Optimization)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, and the record's `fields`."""

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
        return json.dumps(line, ensure_ascii=True).replace("\x7f", r"\u007f")  # not escaped by JSON


class TextLines(logging.Formatter):
    """`time LEVEL logger: message key=value ...` on one line, values as JSON.

    A traceback follows, indented, so that none of it can be taken for a log line.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is the standard library's
        fields = getattr(record, "fields", {})
        pairs = (f" {key}={json.dumps(value)}" for key, value in fields.items() if value is not None)
        return visible(super().formatMessage(record) + "".join(pairs))

    def formatException(self, ei: Any) -> str:  # noqa: N802  as above
        return "\n".join(_INDENT + line for line in visible_lines(super().formatException(ei)).split("\n"))
