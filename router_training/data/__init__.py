"""Input of a training run: prompts and outcomes, their checks, near-duplicates and embeddings."""
