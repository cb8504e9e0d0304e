"""Ctrl-C during a program's imports. Imports next to nothing: it runs before all that takes time to import."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130  # what a shell shows of a program that SIGINT ended


@contextmanager
def quiet_interruption() -> Iterator[None]:
    """Meanwhile Ctrl-C ends the process at once, without a word: nothing has begun that would have to be ended.

    As an exception it would come up in the middle of an import, as a traceback or as what that module makes of it. A
    process that was told to ignore the signal (`nohup`, `&` in a script) goes on ignoring it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(_: int, __: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)
