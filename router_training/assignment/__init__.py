"""Solves which expert answers which category, from scores and costs. Reads no text."""
