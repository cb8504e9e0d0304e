"""Routes that a person writes: their rules, their choice of an expert, and a classifier drafted from examples."""
