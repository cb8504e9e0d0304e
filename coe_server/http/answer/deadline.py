"""The caller's own deadline for a whole answer: `x-request-timeout`, in seconds from the request's arrival."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from coe_server.errors import DeadlineExceeded, RequestError

DEADLINE = "x-request-timeout"


def deadline_of(headers: Mapping[str, str]) -> float | None:
    """When it passes, in the running loop's time; None if the caller does not say."""
    given = headers.get(DEADLINE)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise RequestError(f"{DEADLINE}: {given!r} is not a number of seconds above 0", DEADLINE)
    return asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def by(due: float) -> AsyncIterator[None]:
    """Ends what goes on inside when the deadline passes. Raises DeadlineExceeded."""
    deadline = asyncio.timeout_at(due)
    try:
        async with deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise DeadlineExceeded(f"the time given with {DEADLINE} is over") from error
