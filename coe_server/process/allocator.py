"""The C library's allocator, told to keep memory together. Knows nothing of what is allocated."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # glibc's malloc.h


def share_one_arena() -> bool:
    """All threads allocate from one arena from now on; whether the C library could be told.

    glibc gives each thread one of its own, up to eight for each processor, and what is freed in one is of no use to
    the others: a server's few helping threads hold megabytes that way. One thread at a time has the interpreter
    anyway. Other C libraries have no such arenas.
    """
    with suppress(AttributeError, OSError):
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))
    return False
