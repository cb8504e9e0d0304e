"""Scores and costs -> which expert answers, solved. Knows nothing of text."""
