"""What was decided and what came of it: the decision log, feedback on it, and drift away from training."""
