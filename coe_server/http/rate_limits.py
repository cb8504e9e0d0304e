"""Limits of one key (requests a minute, requests and body bytes in progress), of all bodies, and a log of rejections.

Independent of request contents. Bodies are refused before they are read. Log lines contain no key values, no unknown
paths, and no names of unknown keys.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from coe_server.errors import BodiesFull, CoeError, RateLimited
from coe_server.keys import Key
from coe_server.metrics import ERRORS, KEY_REQUESTS, REQUESTS, Telemetry

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 60.0
HOLD = "coe.body"  # in a request's scope: the `Hold` of its body
PART_OF_A_KEY = 4  # a key may hold a quarter of all bytes
MOST_LINES = 60  # in a window: a client that tries many keys must not fill the disk
LONGEST_SENTENCE = 200  # characters; it may quote a header
_SOON_SECONDS = 1.0


@dataclass(slots=True)
class _Use:
    """The requests of one key: arrivals of the last minute, and the number in progress."""

    recent: deque[float] = field(default_factory=deque)
    running: int = 0


class Admission:
    """One request of a key, from `enter` to `end`; `headers` state the remaining limits."""

    def __init__(self, use: _Use, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self._use: _Use | None = use
        use.running += 1

    def end(self) -> None:
        """The request is over; calling this twice is harmless."""
        use, self._use = self._use, None
        if use is not None:
            use.running -= 1


class RateLimits:
    """Counts by a key's name, so that the counts outlast a reload of the key file."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def enter(self, key: Key) -> Admission:
        """Count one request; the caller ends it with `Admission.end`. Raises RateLimited."""
        use, limit = self._uses.setdefault(key.name, _Use()), key.requests_per_minute
        if key.concurrency is not None and use.running >= key.concurrency:
            raise RateLimited(
                f"key '{key.name}' is limited to {key.concurrency} requests in progress", retry_after_seconds=1.0
            )
        if limit is None:
            return Admission(use, {})
        now = self._forget_old(use)
        if len(use.recent) >= limit:
            raise RateLimited(
                f"key '{key.name}' is limited to {limit} requests a minute", use.recent[0] + WINDOW_SECONDS - now
            )
        use.recent.append(now)
        return Admission(use, _told(limit, use, now))

    def left(self, key: Key) -> dict[str, str]:
        """The key's remaining requests in this minute as headers; empty for a key without that limit."""
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


class BodyLimits(NamedTuple):
    """`largest_bytes` is the largest body allowed: a key may always send one."""

    all_bytes: int
    largest_bytes: int

    @property
    def of_a_key_bytes(self) -> int:
        return max(self.all_bytes // PART_OF_A_KEY, self.largest_bytes)


class Bodies:
    """Bytes of all bodies in progress, and those of each key by its name; `limits` gives the current limits, which the
    configuration's key `setting` sets."""

    def __init__(self, limits: Callable[[], BodyLimits], setting: str = "http.bodies") -> None:
        self._setting = setting
        self.held_bytes = 0
        self._by_key: Counter[str] = Counter()
        self._limits = limits

    def hold(self, key: Key | None) -> Hold:
        """For one request, which gives its bytes back with `release`."""
        return Hold(self, None if key is None else key.name)

    def take(self, size_bytes: int, key_name: str | None) -> None:
        """Count this many more. Raises RateLimited if the key's part is used up, BodiesFull if all is."""
        limits = self._limits()
        if key_name is not None and self._by_key[key_name] + size_bytes > limits.of_a_key_bytes:
            raise RateLimited(
                f"key '{key_name}' is limited to {limits.of_a_key_bytes:,} bytes of bodies in progress "
                f"(of {self._setting})",
                _SOON_SECONDS,
            )
        if self.held_bytes + size_bytes > limits.all_bytes:
            raise BodiesFull(
                f"requests in progress hold {self.held_bytes:,} of {limits.all_bytes:,} bytes of bodies "
                f"({self._setting})"
            )
        self._count(size_bytes, key_name)

    def give_back(self, size_bytes: int, key_name: str | None) -> None:
        self._count(-size_bytes, key_name)

    def _count(self, size_bytes: int, key_name: str | None) -> None:
        self.held_bytes += size_bytes
        if key_name is not None:
            self._by_key[key_name] += size_bytes
            if not self._by_key[key_name]:
                del self._by_key[key_name]


class Hold:
    """The bytes of one request's body, from its content-length to the end of its answer."""

    def __init__(self, bodies: Bodies, key_name: str | None) -> None:
        self._bodies = bodies
        self._key_name = key_name
        self._size_bytes = 0

    def reach(self, size_bytes: int) -> None:
        """The body has this size, or will have. Raises what `Bodies.take` raises."""
        more = size_bytes - self._size_bytes
        if more > 0:
            self._bodies.take(more, self._key_name)
            self._size_bytes = size_bytes

    def release(self) -> None:
        """The request is over; calling this twice is harmless."""
        size_bytes, self._size_bytes = self._size_bytes, 0
        self._bodies.give_back(size_bytes, self._key_name)


class Rejections:
    """Counts and logs requests that are rejected before any endpoint sees them, with a limited number of lines.

    `declared` gives a path as its endpoint declares it; None where there is none.
    """

    def __init__(
        self, telemetry: Telemetry, declared: Callable[[str], str | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._telemetry = telemetry
        self._declared = declared
        self._clock = clock
        self._since = clock()
        self._told = 0
        self._untold = 0

    def count(self, error: CoeError, path: str | None = None, key: Key | None = None) -> None:
        """A request that no endpoint has seen; `path` and the caller's `key` where they are known."""
        self._telemetry.count(ERRORS, error.code)
        self._telemetry.count(REQUESTS, "refused", str(error.status))
        if key is not None:
            self._telemetry.count(KEY_REQUESTS, key.name, str(error.status))
        self.log(error, path, key)

    def log(self, error: CoeError, path: str | None, key: Key | None) -> None:
        """One log line, or one more request without a line."""
        self._begin_window()
        if self._told == MOST_LINES:
            self._untold += 1
            return
        self._told += 1
        fields = {"status": error.status, "code": error.code}
        if path is not None:
            fields["path"] = self._declared(path) or "other"
        if key is not None:
            fields["key"] = key.name
        logger.warning("refused: %s", str(error)[:LONGEST_SENTENCE], extra={"fields": fields})

    def _begin_window(self) -> None:
        now = self._clock()
        if now < self._since + WINDOW_SECONDS:
            return
        if self._untold:
            logger.warning("%d more requests were refused without log lines", self._untold)
        self._since, self._told, self._untold = now, 0, 0
