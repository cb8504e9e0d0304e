"""Replaces vLLM in a stand-in engine."""
