"""Tracing as settings ask for it. OpenTelemetry is an extra: it is imported only where tracing is on."""

from __future__ import annotations

from importlib import import_module

from coe_server.build.experts import model_name
from coe_server.config.schema import ServerConfig, check_tracing_headers
from coe_server.errors import ConfigError
from coe_server.http.trace import NoTracing, Tracing


def build_tracing(config: ServerConfig) -> Tracing:
    """What begins and sends traces. Raises ConfigError as `require_tracing` does."""
    if config.tracing is None:
        return NoTracing()
    require_tracing(config)
    from coe_server.build.otel import span_tracing  # noqa: PLC0415 - an extra, and half a second to import

    return span_tracing(config.tracing, {expert.name: model_name(expert) for expert in config.experts})


def require_tracing(config: ServerConfig) -> None:
    """Raises ConfigError if tracing is on and its packages are not installed, or its headers cannot be sent."""
    if config.tracing is not None:
        check_tracing_headers()
        try:
            import_module("coe_server.build.otel")
        except ImportError as error:
            raise ConfigError("tracing: needs OpenTelemetry; install it: pip install 'coe-server[otel]'") from error
