"""The two sides of a data set, training and held-out, and the folds of one side."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from router_training.data.dataset import Dataset, Ints


@dataclass(frozen=True, slots=True)
class Split:
    """The two sides, and the number of prompts moved to the side of a near-duplicate."""

    training: Dataset
    held_out: Dataset
    moved: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Row numbers: fit on `seen`, predict `left_out`."""

    seen: Ints
    left_out: Ints


def split(dataset: Dataset, held_out_share: float, seed: int, by: Literal["prompt", "group"] = "prompt") -> Split:
    """Split by a hash of the prompt's id, or of its group: the same id is always on the same side.

    In a split by prompt, near-duplicates go to the side of the first id among them; otherwise a router would be
    evaluated on training data. A prompt without a group is a group of its own. What only trains is never held out, nor
    are near-duplicates of it.
    """
    ids = dataset.prompt_ids
    own = [f"{seed}:{name}" for name in ids]
    units = own
    if by == "group":
        units = [f"{seed}:group:{group}" if group else one for group, one in zip(dataset.groups, own, strict=True)]
    else:
        first: dict[int, str] = {}
        for number, name in zip(dataset.copies.tolist(), ids, strict=True):
            first[number] = min(name, first.get(number, name))
        units = [f"{seed}:{first[number]}" for number in dataset.copies.tolist()]
    kept = {unit for unit, only in zip(units, dataset.only_trains.tolist(), strict=True) if only and by == "prompt"}
    held_out = np.array([_fraction(unit) < held_out_share and unit not in kept for unit in units])
    held_out &= ~dataset.only_trains
    alone = np.array([_fraction(unit) < held_out_share for unit in own]) if by == "prompt" else held_out
    return Split(
        training=dataset.rows(np.flatnonzero(~held_out)),
        held_out=dataset.rows(np.flatnonzero(held_out)),
        moved=int((held_out != alone).sum()),
    )


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big") / 2.0**64
