"""The bodies of requests: read within limits, parsed, streamed through, and changed by presets."""
