"""Why a connection could not be made, in the system's words. Knows no client."""

from __future__ import annotations

import os


def why_not_connected(error: OSError) -> str:
    """Of a connection that asyncio tried, which puts its own words into `strerror`; a name's errors are negative."""
    known = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
    return (known or str(error)).lower()
