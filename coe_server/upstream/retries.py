"""Requests that are repeated: the Retry-After header (RFC 9110, 10.2.3), read without trust, and the loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

Result = TypeVar("Result")

LONGEST_SECONDS = 86_400.0  # a day: a quota's; what asks for more is a mistake


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """From 0 to `LONGEST_SECONDS`, given as seconds or as a date; None where it says nothing."""
    seconds = _seconds(header or "", now)
    return min(max(0.0, seconds), LONGEST_SECONDS) if math.isfinite(seconds) else None


async def repeated(
    attempt: Callable[[], Awaitable[Result]], pause_seconds: Callable[[Result, int], float | None]
) -> tuple[Result, int]:
    """The last result and the number of attempts.

    After each attempt `pause_seconds(result, attempts)` gives the pause before the next one, or None to end.
    """
    attempts = 0
    while True:
        result = await attempt()
        attempts += 1
        seconds = pause_seconds(result, attempts)
        if seconds is None:
            return result, attempts
        if seconds > 0.0:
            await asyncio.sleep(seconds)


def backoff_seconds(attempts: int, first_seconds: float, longest_seconds: float) -> float:
    """The pause after this many attempts: `first_seconds`, doubled with each further one, up to the longest."""
    return min(longest_seconds, math.ldexp(first_seconds, min(attempts - 1, 64)))


def _seconds(header: str, now: datetime) -> float:
    try:
        return float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return math.nan
    return (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds()
