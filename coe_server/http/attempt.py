"""One attempt at an expert under one lease, and the rule which failures count against the expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.queue import Lease
from coe_server.engines.engine import Tries
from coe_server.errors import CoeError, EngineError, GenerationTimeout, UpstreamLimited
from coe_server.http.client_stream import Outgoing
from coe_server.http.request_log import RequestLog
from coe_server.http.routed_request import RoutedRequest
from coe_server.routing.decision import RoutingDecision
from coe_server.upstream.complaint import Cause
from coe_server.upstream.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Attempt:
    """Everything needed to relay an answer. `spent` is called once the answer begins; `headers` are this server's."""

    request: RoutedRequest
    decision: RoutingDecision
    lease: Lease
    out: Outgoing
    log: RequestLog
    failures: Failures
    spent: Callable[[], None]
    headers: dict[str, str]
    expert: str
    tries: Tries

    def begins(self) -> None:
        """The first bytes of the answer go out now."""
        self.tries.has_begun = True

    def begun(self, status: int) -> None:
        """The expert's answer begins, with this status."""
        self.log.first_bytes(status, self.out.status or status, self.request.is_streamed)
        if status < 400:
            self.failures.settle()
            self.spent()
            if not self.failures.have_seen(self.expert):
                self.lease.speaks()

    def another_may_answer(self, verdict: Verdict) -> bool:
        """True if another expert in the ranking can be tried after this failure."""
        if self.out.spoken or not self.request.repeatable:
            return False
        others = (one.expert for one in self.decision.ranking[1:] if one.excluded is None)
        if verdict.cause is not Cause.CONTEXT:
            return any(True for _ in others)
        return any(self.request.has_more_room(self.decision.expert, other) for other in others)

    async def timed_out(self) -> CoeError:
        """The error for an answer that took too long. The engine is probed in any case; the result is awaited only if
        another expert can be tried."""
        told = f"the answer took longer than {self.request.service.cache.limits.max_generation_seconds:g} s"
        if self.out.spoken or not self.decision.has_another:
            self.lease.suspect_engine()
        elif not await self.lease.engine_is_alive():
            error = EngineError(f"expert '{self.expert}' is unresponsive: {told} and its health check failed")
            error.backs_off = "never"  # the health check has counted that
            return error
        return GenerationTimeout(f"{told} (scheduling.max_generation_seconds)")


class _Uncounted(NamedTuple):
    """A failure that counts unless another expert fails at the same request."""

    expert: str
    cause: str
    asked_seconds: float | None


class Failures:
    """The experts that failed in one request, by the names of their engines' slots.

    A request that fails on two experts counts against neither, so that one caller's bad request makes no expert
    unavailable. A failure of the expert alone (its account, its limit, no connection) always counts.
    """

    def __init__(self, cache: ExpertCache) -> None:
        self._cache = cache
        self._failed: set[str] = set()
        self._uncounted: list[_Uncounted] = []
        self._tried: set[str] = set()  # experts after their backoff: this request's result ends or prolongs it

    def asks(self, lease: Lease) -> None:
        """Note an attempt at an expert."""
        if lease.is_try:
            self._tried.add(lease.expert)

    def have_seen(self, expert: str) -> bool:
        """True if this expert failed."""
        return self._cache.slots[expert].name in self._failed

    def note(self, expert: str, error: CoeError) -> None:
        """Note a failed attempt."""
        if not isinstance(error, EngineError | UpstreamLimited):
            return
        expert = self._cache.slots[expert].name
        match error.backs_off:
            case "at once":
                self._cache.failures.count_remote(
                    self._cache.slots[expert], error.cause, at_once=True, asked_seconds=error.asked_seconds
                )
            case "in a row" if expert not in self._failed:  # two names of one engine are one failure
                self._uncounted.append(_Uncounted(expert, error.cause, error.asked_seconds))
            case "never":
                self._end_tries({expert})
        self._failed.add(expert)

    def settle(self) -> None:
        """Count the failures, once an answer begins or the request is over: a whole answer may take long."""
        if not self._failed:
            return
        for expert, cause, asked_seconds in self._uncounted if len(self._failed) == 1 else ():
            self._cache.failures.count_remote(
                self._cache.slots[expert], cause, at_once=False, asked_seconds=asked_seconds
            )
        self._uncounted.clear()
        self._end_tries(self._failed)

    def close(self) -> None:
        """The request is over."""
        self.settle()
        if self._tried:
            self._end_tries(self._tried.copy())

    def _end_tries(self, experts: set[str]) -> None:
        for expert in self._tried & experts:
            self._cache.slots[expert].backoff.end_try()
        self._tried -= experts
