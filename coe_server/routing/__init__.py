"""From a text to a routing decision. Does not depend on HTTP, tiers or engines."""
