"""Which experts to host, searched for by exchange: good sets fast where the exact program takes long. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_GAIN = 1e-12
ROUNDS = 100  # each adds, drops or exchanges one expert; far fewer are needed


def improved_set(values: Vector, total_params_b: Vector, hosted_params_b: float, most: int, start: Ints) -> Ints:
    """A set of experts at least as good as `start`, by single additions, removals and exchanges.

    `values` [categories, experts] are what a category gives at an expert; each takes the best one
    in the set. The set has at most `most` experts and `hosted_params_b` parameters in all.
    """
    chosen = list(start)
    for _ in range(ROUNDS):
        step = _best_step(values, total_params_b, hosted_params_b, most, np.array(chosen, dtype=np.int64))
        if step is None:
            break
        chosen = step
    return np.array(sorted(chosen), dtype=np.int64)


def _best_step(values: Vector, sizes: Vector, hosted: float, most: int, chosen: Ints) -> list[int] | None:
    """The neighbouring set that gains most; None if none gains."""
    reached = float(values[:, chosen].max(axis=1).sum()) if len(chosen) else -np.inf
    best, found = reached + LEAST_GAIN, None
    for removed in (None, *chosen.tolist()):
        rest = [one for one in chosen.tolist() if one != removed]
        if len(rest) >= most:
            continue
        covered = values[:, rest].max(axis=1) if rest else np.full(len(values), -np.inf)
        room = hosted - sizes[rest].sum()
        gains = np.maximum(covered[:, np.newaxis], values).sum(axis=0)
        gains = np.where(sizes <= room, gains, -np.inf)
        added = int(gains.argmax())
        if gains[added] > best:
            best, found = float(gains[added]), [*rest, added]
    return found
