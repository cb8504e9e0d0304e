"""One expert's process. Knows nothing of the other experts."""
