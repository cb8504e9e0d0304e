"""Signals to a process that asyncio started."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress


def signal_child(process: asyncio.subprocess.Process, number: int) -> None:
    """Send a signal; no effect if the process is known to have ended.

    `Process.send_signal` first looks whether the process has ended, and so takes the exit status of one that has just
    done so. asyncio, which waits for the same status, then logs a warning and reports 255.
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
