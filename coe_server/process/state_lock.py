"""Keeps a second server out of a state directory: it would overwrite what the first one has measured and decided.

Knows nothing of what is kept there.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from coe_server.errors import CoeError
from coe_server.private_files import open_private, private_folder

logger = logging.getLogger(__name__)

LOCK_FILE = "server.lock"
_LONGEST_NAME_BYTES = 200


@contextmanager
def state_lock(folder: Path) -> Iterator[None]:
    """Held for a server's life; the kernel lets go of it however the server ends. Raises CoeError if another holds it.

    Where no file can be made nothing is held: whoever writes there later says so.
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
    """Who wrote its name last; it may be about to write it."""
    file.seek(0)
    return file.read(_LONGEST_NAME_BYTES).decode(errors="replace") or "it is just starting"
