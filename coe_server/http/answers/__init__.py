"""The bytes of an answer: its events, its text and token counts, and the name of its model."""
