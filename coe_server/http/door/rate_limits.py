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
        use = self._uses.setdefault(key.name, _Use())
        if key.concurrency is not None and use.running >= key.concurrency:
            raise RateLimited(
                f"key '{key.name}' may have {key.concurrency} requests in progress at a time", retry_after_seconds=1.0
            )
        headers = self._spend(key, key.requests_per_minute, use) if key.requests_per_minute is not None else {}
        return Admission(use, headers)

    def _spend(self, key: Key, limit: int, use: _Use) -> dict[str, str]:
        now = self._clock()
        while use.recent and use.recent[0] <= now - WINDOW_SECONDS:
            use.recent.popleft()
        if len(use.recent) >= limit:
            raise RateLimited(f"key '{key.name}' may ask {limit} times a minute", use.recent[0] + WINDOW_SECONDS - now)
        use.recent.append(now)
        return {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(limit - len(use.recent)),
            "x-ratelimit-reset-requests": f"{use.recent[0] + WINDOW_SECONDS - now:.3f}s",
        }
