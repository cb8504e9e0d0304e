"""The HTTP interface: reads a request once, routes it, admits it to an expert and relays the answer."""
