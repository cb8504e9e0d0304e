"""Evaluates a router: metrics, intervals, and the decision whether an objective is shipped."""
