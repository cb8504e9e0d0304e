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


def give_back_free_memory() -> bool:
    """Hand what is free to the system again; whether the C library could be told. Takes about a millisecond.

    glibc does so by itself only at the end of an arena: what a start or a reload needed for a moment stays otherwise.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
        return True
    return False
