"""What every client of ours has in common: its name, its limits, why it could not connect. Knows no client."""

from __future__ import annotations

import os
from importlib.metadata import version

LONGEST_HEADER_BYTES = 64 * 1024  # of an answer, name and value; a content-security-policy alone may have ten thousand


def user_agent() -> str:
    """What this program calls itself: firewalls refuse requests that name no program."""
    return f"coe-server/{version('coe-server')}"


def why_not_connected(error: OSError) -> str:
    """Of a connection that asyncio tried, which puts its own words into `strerror`; a name's errors are negative."""
    known = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
    return (known or str(error)).lower()
