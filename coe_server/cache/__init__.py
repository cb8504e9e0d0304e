"""Expert to lease. Knows nothing of HTTP or routing."""
