"""Lower confidence bounds instead of means: an expert must have shown that it is good. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from router_training.step_two.scores import ScoreTable

UNKNOWN_ERROR = 0.5  # of a score behind which fewer than two prompts stand: the most that scores in [0, 1] spread


def lower_bounds(table: ScoreTable, z: float) -> ScoreTable:
    """The table with `z` standard errors taken off every score, down to 0 at most."""
    return replace(
        table,
        scores=np.clip(table.scores - z * np.nan_to_num(table.standard_errors, nan=UNKNOWN_ERROR), 0.0, 1.0),
        overall_scores=np.clip(table.overall_scores - z * np.nan_to_num(table.overall_errors, nan=UNKNOWN_ERROR), 0, 1),
    )
