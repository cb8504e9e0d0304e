"""How unsure may the classifier be before `general` answers better? Chosen on prompts it was not fitted on. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

NEVER = 1.0
QUANTILES = np.linspace(0.3, 1.0, 36)  # at most seven prompts in ten go to `general` for this reason


def fitted_entropy_limit(entropies: Vector, gains: Vector, weights: Vector) -> float:
    """The normalised entropy above which the experts' overall means decide; 1 (never) unless that is clearly better.

    `gains` [n] are what trusting the categories gained on each prompt over the overall means. Clearly better: the
    prompts sent to `general` lost by being trusted, by more than two standard errors.
    """
    if len(gains) == 0:
        return NEVER
    best, limit = 0.0, NEVER
    for candidate in np.quantile(entropies, QUANTILES):
        unsure = entropies > candidate
        if unsure.sum() < 2:
            continue
        lost = -weights * gains * unsure / weights.mean()
        saved = float(lost.mean())
        certain = saved > 2.0 * float(lost.std(ddof=1)) / np.sqrt(len(lost))
        if certain and saved > best:
            best, limit = saved, float(candidate)
    return limit
