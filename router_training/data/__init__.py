"""What a training run reads: prompts and outcomes, checked, near-duplicates found, texts embedded."""
