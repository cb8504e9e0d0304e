"""What a prompt's own words add to the expected scores of its category: a small linear correction for each expert.

Knows nothing of categories or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.features import Floats, SparseVector


@dataclass(frozen=True, slots=True)
class Corrections:
    """`coefficients` [columns, experts]; corrections sum to about 0 over the experts, and so move choices only."""

    coefficients: Floats

    def of(self, vector: SparseVector) -> npt.NDArray[np.float64]:
        """[experts]: to be added to the expected scores."""
        return vector.times(self.coefficients).astype(np.float64)
