"""Category probabilities and corrections of one vector, in one walk over the rows that both have for its columns.

Of a decision's time most goes into memory that no cache holds: a row of both is read as fast as a row of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coe_server.routing.classifier import Classifier
from coe_server.routing.corrections import Corrections
from coe_server.routing.features import Floats, SparseVector

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Readout:
    """`matrix` [columns, r + experts]: the classifier's projection and, beside it, the corrections' coefficients."""

    classifier: Classifier
    matrix: Floats

    @classmethod
    def of(cls, classifier: Classifier, corrections: Corrections | None) -> Readout:
        projection = classifier.model.projection
        if corrections is None:
            return cls(classifier, projection)
        return cls(classifier, np.hstack((projection, corrections.coefficients)))

    def read(self, vector: SparseVector) -> tuple[Vector, Vector]:
        """(P(category), corrections [experts]); the second is empty where there are none."""
        both = vector.times(self.matrix)
        width = self.classifier.model.projection.shape[1]
        return self.classifier.of_projected(both[:width]), both[width:].astype(np.float64)
