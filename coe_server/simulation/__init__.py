"""Simulates the cache under a virtual clock, and compares it with other policies and the offline bound."""
