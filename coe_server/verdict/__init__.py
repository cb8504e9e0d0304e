"""Whose failure is it: an answer, the caller's mistake or the expert's failure. Pure: bytes in, values out."""
