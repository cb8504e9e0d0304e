"""The decision log, feedback on decisions, and drift of the traffic from the training data."""
