"""The environment as this process was given it: a piece of its memory that /proc/PID/environ shows."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress


def blank_in_place(variable: str) -> None:
    """Overwrite the value of an environment variable where the C library has it; the variable is empty then.

    `unsetenv` forgets where it is and leaves it there. Copies that were made of it before stay what they are.
    """
    start = os.fsencode(variable) + b"="
    with suppress(ValueError, AttributeError, OSError):  # a C library without `environ`
        entries = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
        place = 0
        while address := entries[place]:
            entry = ctypes.string_at(address)
            if entry.startswith(start):
                ctypes.memset(address + len(start), 0, len(entry) - len(start))
            place += 1
