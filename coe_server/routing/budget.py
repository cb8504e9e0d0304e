"""Step two's price: an expert's value is its expected score less what its active parameters cost.

Pure. The multiplier comes from the objective, as training found it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


def values(expected_scores: Vector, active_params_b: Vector, multiplier: float) -> Vector:
    """Expected score - multiplier * billions of active parameters, for each expert (last axis)."""
    return np.asarray(expected_scores - multiplier * active_params_b)
