"""Text to decision. Knows nothing of HTTP, tiers or engines."""
