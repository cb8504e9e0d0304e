"""The OpenAI api: reads a body once, asks for a decision and a lease, passes the rest through."""
