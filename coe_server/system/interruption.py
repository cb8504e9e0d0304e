"""Ctrl-C during a program's imports. Imports almost nothing itself, since it runs before the slow imports."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130  # exit code of a program ended by SIGINT, as shells report it


@contextmanager
def quiet_interruption() -> Iterator[None]:
    """Within this context Ctrl-C ends the process at once and silently: there is nothing to clean up yet.

    KeyboardInterrupt would be raised inside an import, as a traceback or as that module's own error. A process that
    ignores the signal (`nohup`, `&` in a script) goes on ignoring it.
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
