"""How many files and connections this process may have open at once. Knows nothing of what they are."""

from __future__ import annotations

import resource

ENOUGH = 65_536  # every request under way has two: its caller's and its engine's


def allow_many_open_files() -> None:
    """Raise the soft limit as far as the hard one and `ENOUGH` allow.

    A shell and, since containerd 2, a container give a process 1,024: a few hundred streams at once.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
