"""Keeps other processes of this process' own user from looking into it. Knows nothing of what there is to see."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_PR_SET_DUMPABLE = 4  # Linux's prctl.h


def refuse_inspection() -> bool:
    """From now on only root can read this process' memory, first environment and open files; whether that could be had.

    They belong to root, no other process can trace this one, and it leaves no core dump (prctl(2), PR_SET_DUMPABLE).
    A program that this process starts can be looked into again.
    """
    with suppress(AttributeError, OSError):
        return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
    return False
