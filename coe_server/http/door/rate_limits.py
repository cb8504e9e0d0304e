"""What one key may ask for: requests in a minute, requests at a time. Knows nothing of what they ask."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from coe_server.errors import RateLimited
from coe_server.keys import Key

WINDOW_SECONDS = 60.0


@dataclass(slots=True)
class _Use:
    """The requests of one key: when those of the last minute came, and how many are not over."""

    recent: deque[float] = field(default_factory=deque)
    running: int = 0


class Admission:
    """One request of a key, from `enter` to `end`; `headers` tell what is left of its limits."""

    def __init__(self, use: _Use, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self._use: _Use | None = use
        use.running += 1

    def end(self) -> None:
        """It is over; saying so twice is harmless."""
        use, self._use = self._use, None
        if use is not None:
            use.running -= 1


class RateLimits:
    """Counts by a key's name, so that a key file can be read again without forgetting."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def enter(self, key: Key) -> Admission:
        """Count one request, to be ended by whoever called. Raises RateLimited."""
        use, limit = self._uses.setdefault(key.name, _Use()), key.requests_per_minute
        if key.concurrency is not None and use.running >= key.concurrency:
            raise RateLimited(
                f"key '{key.name}' may have {key.concurrency} requests in progress at a time", retry_after_seconds=1.0
            )
        if limit is None:
            return Admission(use, {})
        now = self._forget_old(use)
        if len(use.recent) >= limit:
            raise RateLimited(f"key '{key.name}' may ask {limit} times a minute", use.recent[0] + WINDOW_SECONDS - now)
        use.recent.append(now)
        return Admission(use, _told(limit, use, now))

    def left(self, key: Key) -> dict[str, str]:
        """As headers, what is left of what the key may ask in a minute; nothing where that has no limit."""
        if key.requests_per_minute is None:
            return {}
        use = self._uses.setdefault(key.name, _Use())
        return _told(key.requests_per_minute, use, self._forget_old(use))

    def _forget_old(self, use: _Use) -> float:
        now = self._clock()
        while use.recent and use.recent[0] <= now - WINDOW_SECONDS:
            use.recent.popleft()
        return now


def _told(limit: int, use: _Use, now: float) -> dict[str, str]:
    reset = use.recent[0] + WINDOW_SECONDS - now if use.recent else 0.0
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(max(0, limit - len(use.recent))),
        "x-ratelimit-reset-requests": f"{reset:.3f}s",
    }
