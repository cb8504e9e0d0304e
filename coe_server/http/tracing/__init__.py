"""A request as a trace: the interface, and OpenTelemetry behind it."""
