"""Collects outcomes: sends every prompt to every expert, records and scores every answer."""
