"""How many files and connections this process may have open at once. Knows nothing of what they are."""

from __future__ import annotations

import errno
import logging
import os
import resource
import time
from collections.abc import Callable

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
