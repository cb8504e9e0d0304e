"""Outcomes from your own experts: every prompt to every expert, every answer recorded and scored."""
