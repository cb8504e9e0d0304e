"""A request as OpenTelemetry spans: the whole request, its routing, and for each expert the wait and the answer.

Imported only if tracing is on. No span holds a prompt, a key, or an error's message, which may quote either.
The SDK is set up as settings say: sampled, batched, sent by a thread of its own. What settings leave open, it takes
from its own environment (OTEL_...).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from coe_server.config.schema import TracingSettings
from coe_server.errors import CoeError
from coe_server.http.answers.usage import UNSTATED, Usage
from coe_server.http.apis import Api, wants_stream
from coe_server.http.tracing.trace import CONTEXT, Pairs, Trace, Untraced
from coe_server.routing.decision import RoutingDecision

# Names from OpenTelemetry's conventions for generative AI; ours where those define none.
_OPERATIONS = {"completions": "text_completion", "responses": "chat", "messages": "chat"}
_TOKENS = {
    "prompt": "gen_ai.usage.input_tokens",
    "cached_prompt": "gen_ai.usage.cache_read.input_tokens",
    "completion": "gen_ai.usage.output_tokens",
}
_W3C = TraceContextTextMapPropagator()

Attributes = dict[str, str | bool | int | float]


class SpanTracing:
    """`Tracing` with spans. `models`: expert -> its engine's model name; `flush` sends what is left."""

    def __init__(self, tracer: Tracer, models: Mapping[str, str], flush: Callable[[], None]) -> None:
        self._tracer = tracer
        self._models = models
        self._flush = flush

    def begin(
        self,
        api: Api,
        headers: Mapping[str, str],
        fields: Mapping[str, Any],
        decision: RoutingDecision,
        began: float,
    ) -> Trace:
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        request = self._tracer.start_span(
            f"POST {api.path}",
            _W3C.extract(headers, Context()),
            SpanKind.SERVER,
            _asked(api, fields),
            start_time=epoch_ns + int(began * 1e9),
        )
        if not request.is_recording():
            return Unrecorded(request)
        operation = _OPERATIONS.get(api.endpoint, api.endpoint)
        return Spans(self._tracer, request, epoch_ns, operation, self._models, decision)

    def close(self) -> None:
        self._flush()


class Spans:
    """The `Trace` of a sampled request."""

    def __init__(
        self,
        tracer: Tracer,
        request: Span,
        epoch_ns: int,
        operation: str,
        models: Mapping[str, str],
        decision: RoutingDecision,
    ) -> None:
        """`epoch_ns` is the wall-clock time at which `time.perf_counter` was 0."""
        self._tracer = tracer
        self._request = request
        self._epoch_ns = epoch_ns
        self._operation = operation
        self._models = models
        self._inside = set_span_in_context(request, Context())
        self._answer: Span | None = None
        self._waits_since: int | None = None
        now = self._now()
        chosen: Attributes = {"coe.expert": decision.expert, "coe.reason": decision.reason}
        self._child("route", now - int(decision.routing_ms * 1e6), chosen).end(now)
        self.follows(decision)

    def follows(self, decision: RoutingDecision) -> None:
        self._end_phase()
        self._decision, self._waits_since = decision, self._now()
        self._request.set_attributes(_decided(decision))

    def granted(self, expert: str, waited_seconds: float, since_arrival_seconds: float) -> None:
        if self._waits_since is None:  # once more to the same expert
            self._waits_since = self._now() - int(waited_seconds * 1e9)
        self._end_phase()
        self._request.set_attribute("coe.wait_ms", round(since_arrival_seconds * 1000, 1))
        asked: Attributes = {
            "coe.expert": expert,
            "gen_ai.operation.name": self._operation,
            "gen_ai.request.model": self._models[expert],
        }
        self._answer = self._child(f"{self._operation} {expert}", self._now(), asked, SpanKind.CLIENT)

    def first_bytes(self, status: int) -> None:
        assert self._answer is not None, "an attempt was begun"
        self._answer.add_event("first bytes", timestamp=self._now())
        self._answer.set_attribute("http.response.status_code", status)
        if status >= 400:
            _blame(self._answer, str(status))

    def lost(self, error: CoeError) -> None:
        self._end_phase(error.code)

    def close(self, status: int | None, error: CoeError | None, hung_up: bool, usage: Usage = UNSTATED) -> None:
        if self._answer is not None:
            self._answer.set_attributes({_TOKENS[kind]: tokens for kind, tokens in usage.stated})
        self._end_phase(error.code if error else None)
        if status is not None:
            self._request.set_attribute("http.response.status_code", status)
        if error is not None:
            self._request.set_attribute("error.type", error.code)
        elif status is not None and status >= 400:
            self._request.set_attribute("error.type", str(status))
        if (error.status if error else status or 0) >= 500:  # by convention, lower statuses are the caller's errors
            self._request.set_status(StatusCode.ERROR)
        if hung_up:
            self._request.set_attribute("coe.hung_up", True)
        self._request.end(self._now())

    def onto(self, headers: Pairs) -> Pairs:
        return _with_context(headers, self._answer or self._request)

    def _end_phase(self, error_type: str | None = None) -> None:
        """End the wait for an expert, or the answer of one."""
        span, self._answer = self._answer, None
        if self._waits_since is not None:
            first = self._decision.ranking[0]
            waited: Attributes = {"coe.expert": first.expert, "coe.residency": first.residency or ""}
            span = self._child(f"wait for {first.expert}", self._waits_since, waited)
            self._waits_since = None
        if span is not None:
            if error_type is not None:
                _blame(span, error_type)
            span.end(self._now())

    def _child(self, name: str, start_ns: int, attributes: Attributes, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        return self._tracer.start_span(name, self._inside, kind, attributes, start_time=start_ns)

    def _now(self) -> int:
        return self._epoch_ns + time.perf_counter_ns()


class Unrecorded(Untraced):
    """The trace of a request that was not sampled; the engine gets that flag."""

    def __init__(self, request: Span) -> None:
        self._request = request

    def onto(self, headers: Pairs) -> Pairs:
        return _with_context(headers, self._request)


def _asked(api: Api, fields: Mapping[str, Any]) -> Attributes:
    asked: Attributes = {
        "http.request.method": "POST",
        "http.route": api.path,
        "url.path": api.path,
        "url.scheme": "http",
        "gen_ai.operation.name": _OPERATIONS.get(api.endpoint, api.endpoint),
        "gen_ai.request.stream": wants_stream(fields),
    }
    if isinstance(model := fields.get("model"), str):
        asked["gen_ai.request.model"] = model
    return asked


def _decided(decision: RoutingDecision) -> Attributes:
    attributes = {
        "coe.decision_id": decision.decision_id,
        "coe.category": decision.category,
        "coe.confidence": decision.confidence,
        "coe.expert": decision.expert,
        "coe.reason": decision.reason,
        "coe.objective": decision.objective,
        "coe.residency": decision.ranking[0].residency,
        "coe.router_version": decision.router_version,
    }
    return {name: value for name, value in attributes.items() if value not in {None, ""}}


def _blame(span: Span, error_type: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR)


def _with_context(headers: Pairs, span: Span) -> Pairs:
    ours: dict[str, str] = {}
    _W3C.inject(ours, set_span_in_context(span, Context()))
    if not ours:  # the SDK is switched off (OTEL_SDK_DISABLED)
        return headers
    return (*(pair for pair in headers if pair[0].lower() not in CONTEXT), *ours.items())


FLUSH_SECONDS = 3.0  # at the end, for what the collector has not taken yet


def span_tracing(
    settings: TracingSettings, models: Mapping[str, str], processor: SpanProcessor | None = None
) -> SpanTracing:
    """Tracing as settings say; `processor` takes the place of the one that sends to their endpoint."""
    ratio = settings.sample_ratio
    provider = TracerProvider(
        sampler=None if ratio is None else ParentBased(TraceIdRatioBased(ratio)),
        resource=_resource(settings.service_name),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter(settings.endpoint)))

    def flush() -> None:
        """Send what is left, for at most FLUSH_SECONDS; the SDK waits half a minute for a silent collector."""
        shutdown = threading.Thread(target=provider.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(FLUSH_SECONDS)

    return SpanTracing(provider.get_tracer("coe_server"), models, flush)


def _resource(service_name: str | None) -> Resource:
    if service_name is not None:
        return Resource.create({SERVICE_NAME: service_name})
    return Resource.create(Resource({SERVICE_NAME: "coe"}).merge(OTELResourceDetector().detect()).attributes)
