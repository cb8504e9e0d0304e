"""From an expert's name to a lease on it. Does not depend on HTTP or routing."""
