"""The interface of tracing, and its no-op implementation. Does not depend on OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from coe_server.errors import CoeError
from coe_server.http.answers.usage import UNSTATED, Usage
from coe_server.http.apis import Api
from coe_server.routing.decision import RoutingDecision

Pairs = tuple[tuple[str, str], ...]
CONTEXT = frozenset(("traceparent", "tracestate"))  # W3C Trace Context: the parent of a request


class Trace(Protocol):
    """One request from its decision to its end, as reported by its `RequestLog`."""

    def follows(self, decision: RoutingDecision) -> None:
        """The decision is replaced."""

    def granted(self, expert: str, waited_seconds: float, since_arrival_seconds: float) -> None:
        """A lease was granted after this wait: an attempt begins."""

    def first_bytes(self, status: int) -> None:
        """The expert's answer begins."""

    def lost(self, error: CoeError) -> None:
        """The attempt failed; another one may follow."""

    def close(self, status: int | None, error: CoeError | None, hung_up: bool, usage: Usage = UNSTATED) -> None:
        """The request is over. `status`: the caller's status, None if nothing was sent.

        `usage`: the tokens of the answer.
        """

    def onto(self, headers: Pairs) -> Pairs:
        """The headers for the expert, with the context that its own trace continues."""


class Tracing(Protocol):
    """Begins traces and sends them."""

    def begin(
        self,
        api: Api,
        headers: Mapping[str, str],
        fields: Mapping[str, Any],
        decision: RoutingDecision,
        began: float,
    ) -> Trace:
        """The trace of a request with these headers and body fields; `began` is in `time.perf_counter` seconds."""

    def close(self) -> None:
        """Send what is left, within a few seconds. Waits."""


class Untraced:
    """No trace: the caller's own trace context is passed to the engine unchanged."""

    def _not_told(self, *_: object, **__: object) -> None:
        """Does nothing."""

    follows = granted = first_bytes = lost = close = _not_told

    def onto(self, headers: Pairs) -> Pairs:
        return headers


class NoTracing:
    """Tracing that is off."""

    def begin(self, *_: object, **__: object) -> Trace:
        return Untraced()

    def close(self) -> None:
        """Do nothing."""
