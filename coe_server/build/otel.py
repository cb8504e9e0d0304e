"""OpenTelemetry's SDK, set up as settings say: sampled, batched, sent by a thread of its own.

Imported only where tracing is on. What settings leave open, the SDK takes from its own environment (OTEL_...).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from coe_server.config.schema import TracingSettings
from coe_server.http.otel_spans import SpanTracing

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
