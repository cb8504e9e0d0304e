"""From the socket to the first endpoint: connections, keys, limits, bodies."""
