"""Both steps together: what unseen prompts would have looked like, and the draft of an artifact."""
