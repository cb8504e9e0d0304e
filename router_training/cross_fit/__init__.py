"""Both steps together: out-of-fold predictions and the draft of an artifact."""
