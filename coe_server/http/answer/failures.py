"""Which experts one request saw fail, and which of these failures count against them."""

from __future__ import annotations

from typing import NamedTuple

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.queue import Lease
from coe_server.errors import CoeError, EngineError, UpstreamLimited


class _Uncounted(NamedTuple):
    """A failure that counts unless another expert fails at the same request."""

    expert: str
    cause: str
    asked_seconds: float | None


class Failures:
    """A request that fails on two experts counts against neither, so that one caller's poison takes no expert from the
    rest; what tells of the expert alone (its account, its limit, no connection) always counts."""

    def __init__(self, cache: ExpertCache) -> None:
        self._cache = cache
        self._failed: set[str] = set()
        self._uncounted: list[_Uncounted] = []
        self._tried: set[str] = set()

    def asks(self, lease: Lease) -> None:
        """An expert is asked."""
        if lease.is_try:
            self._tried.add(lease.expert)

    def have_seen(self, expert: str) -> bool:
        """Whether this expert failed."""
        return expert in self._failed

    def note(self, expert: str, error: CoeError) -> None:
        """An expert gave no answer."""
        if not isinstance(error, EngineError | UpstreamLimited):
            return
        match error.backs_off:
            case "at once":
                self._cache.failures.count_remote(
                    self._cache.slots[expert], error.cause, at_once=True, asked_seconds=error.asked_seconds
                )
            case "in a row":
                self._uncounted.append(_Uncounted(expert, error.cause, error.asked_seconds))
            case "never":
                self._end_tries({expert})
        self._failed.add(expert)

    def settle(self) -> None:
        """An expert has begun to answer, or the request is over. Another answer may take long: nothing waits for it."""
        for expert, cause, asked_seconds in self._uncounted if len(self._failed) == 1 else ():
            self._cache.failures.count_remote(
                self._cache.slots[expert], cause, at_once=False, asked_seconds=asked_seconds
            )
        self._uncounted.clear()
        self._end_tries(self._failed)

    def close(self) -> None:
        """The request is over."""
        self.settle()
        self._end_tries(self._tried.copy())

    def _end_tries(self, experts: set[str]) -> None:
        for expert in self._tried & experts:
            self._cache.slots[expert].backoff.end_try()
        self._tried -= experts
