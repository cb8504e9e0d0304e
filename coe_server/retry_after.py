"""How long a Retry-After header asks to wait (RFC 9110, 10.2.3). Pure; the header is read without trust."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_SECONDS = 86_400.0  # a day: a quota's; what asks for more is a mistake


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """From 0 to `LONGEST_SECONDS`, given as seconds or as a date; None where it says nothing."""
    seconds = _seconds(header or "", now)
    return min(max(0.0, seconds), LONGEST_SECONDS) if math.isfinite(seconds) else None


def _seconds(header: str, now: datetime) -> float:
    try:
        return float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return math.nan
    return (until.replace(tzinfo=until.tzinfo or UTC) - now).total_seconds()
