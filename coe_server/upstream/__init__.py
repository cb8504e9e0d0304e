"""Judges the responses of engines and other servers: headers, content codings, errors, verdicts."""
