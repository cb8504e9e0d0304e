"""What one key may ask for: requests in a minute, requests at a time. Knows nothing of what they ask.

How many bytes of bodies requests hold at a time, all together and those of one key. Refused before they are read.

What is turned away at the door: counted, and told in the log, though no more often than somebody can read.

No line has a key, nor a path that a client made up; a wrong or missing key has no name.
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


HOLD = "coe.body"  # in a request's scope: the `Hold` of its body
PART_OF_A_KEY = 4  # a key may hold a quarter
_SOON_SECONDS = 1.0


class BodyLimits(NamedTuple):
    """`largest_bytes` is what one body may be: a key may always send one."""

    all_bytes: int
    largest_bytes: int

    @property
    def of_a_key_bytes(self) -> int:
        return max(self.all_bytes // PART_OF_A_KEY, self.largest_bytes)


class Bodies:
    """Counts by a key's name; `limits` gives those in charge now."""

    def __init__(self, limits: Callable[[], BodyLimits]) -> None:
        self.held_bytes = 0
        self._by_key: Counter[str] = Counter()
        self._limits = limits

    def hold(self, key: Key | None) -> Hold:
        """For one request; whatever it comes to hold is given back with `release`."""
        return Hold(self, None if key is None else key.name)

    def take(self, size_bytes: int, key_name: str | None) -> None:
        """So many more. Raises RateLimited for a key that holds its part, BodiesFull where all is held."""
        limits = self._limits()
        if key_name is not None and self._by_key[key_name] + size_bytes > limits.of_a_key_bytes:
            raise RateLimited(
                f"key '{key_name}' may have {limits.of_a_key_bytes:,} bytes of bodies in progress at a time "
                "(of http.bodies)",
                _SOON_SECONDS,
            )
        if self.held_bytes + size_bytes > limits.all_bytes:
            raise BodiesFull(
                f"requests in progress hold {self.held_bytes:,} of {limits.all_bytes:,} bytes of bodies (http.bodies)"
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
    """The bytes of one request's body, from what it announces to the end of its answer."""

    def __init__(self, bodies: Bodies, key_name: str | None) -> None:
        self._bodies = bodies
        self._key_name = key_name
        self._size_bytes = 0

    def reach(self, size_bytes: int) -> None:
        """The body is that long, or will be. Raises what `Bodies.take` raises."""
        more = size_bytes - self._size_bytes
        if more > 0:
            self._bodies.take(more, self._key_name)
            self._size_bytes = size_bytes

    def release(self) -> None:
        """The request is over; saying so twice is harmless."""
        size_bytes, self._size_bytes = self._size_bytes, 0
        self._bodies.give_back(size_bytes, self._key_name)


logger = logging.getLogger(__name__)

MOST_LINES = 60  # in a window; who guesses keys shall not fill a disk
LONGEST_SENTENCE = 200  # characters; it may quote a header


class Refusals:
    """`declared` gives a path as its endpoint declares it; None where there is none."""

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
        """A request that nothing but the door has seen; `path` and `key` (its caller's) where they are known."""
        self._telemetry.count(ERRORS, error.code)
        self._telemetry.count(REQUESTS, "refused", str(error.status))
        if key is not None:
            self._telemetry.count(KEY_REQUESTS, key.name, str(error.status))
        self.tell(error, path, key)

    def tell(self, error: CoeError, path: str | None, key: Key | None) -> None:
        """A line in the log, or one more that had none."""
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
            logger.warning("%d more requests were refused after these, without a line each", self._untold)
        self._since, self._told, self._untold = now, 0, 0
