"""The endpoints beside those that reach an expert: the operator's, the page's, metrics, models, feedback."""
