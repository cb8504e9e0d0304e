"""Ratings of routed answers, as `coe journal export` writes them, and what they do to an artifact's scores.

The file is JSONL, one decision a line: `expert`, `inside`, `probabilities{category: p}`, `expected_score`, and `score`
(0 to 1), null where nobody rated. Decisions without a rating count as well: they tell how often an expert was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.errors import DatasetError
from coe_server.routing.artifact import Artifact
from coe_server.routing.manifest import Manifest, ScoreEntry
from router_training.data.dataset import read_rows
from router_training.step_two.ratings import Prior, Ratings, Shift, shifted

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rated:
    """The artifact with moved scores; `used` ratings of `given` were of experts and categories that it knows."""

    artifact: Artifact
    used: int
    given: int


def with_feedback(artifact: Artifact, path: Path) -> Rated:
    """The artifact with its scores moved by the ratings in a file; step one and objectives stay as they are.

    Raises DatasetError naming file and row, or if no rating is of this artifact's experts and categories.
    """
    manifest = artifact.manifest
    rows = [(number, row) for number, row in read_rows(path)]
    known = [(number, row) for number, row in rows if _of(manifest, row)]
    ratings = _ratings(path, known, manifest)
    used = int((~np.isnan(ratings.scores)).sum())
    given = sum(_is_rated(row) for _, row in rows)
    if used == 0:
        raise DatasetError(
            f"{path}: none of its {given} ratings is of an expert and the categories that this artifact knows"
        )
    return Rated(replace(artifact, manifest=_moved(manifest, shifted(_prior(manifest), ratings))), used, given)


def _of(manifest: Manifest, row: Mapping[str, Any]) -> bool:
    """Was this decided by a router with these categories, for an expert that the artifact has?"""
    probabilities = row.get("probabilities")
    return (
        isinstance(probabilities, dict)
        and set(probabilities) == set(manifest.categories)
        and row.get("expert") in {expert.name for expert in manifest.experts}
    )


def _ratings(path: Path, rows: Sequence[tuple[int, Mapping[str, Any]]], manifest: Manifest) -> Ratings:
    names = [expert.name for expert in manifest.experts]
    return Ratings(
        probabilities=np.array(
            [[_share(path, n, row["probabilities"][name]) for name in manifest.categories] for n, row in rows]
        ).reshape(len(rows), len(manifest.categories)),
        inside=np.array([bool(row.get("inside", True)) for _, row in rows], dtype=np.bool_),
        experts=np.array([names.index(row["expert"]) for _, row in rows], dtype=np.int64),
        expected=np.clip([_number(path, n, row.get("expected_score")) for n, row in rows], 0.0, 1.0),
        scores=np.array([_share(path, n, row["score"]) if _is_rated(row) else np.nan for n, row in rows]),
    )


def _is_rated(row: Mapping[str, Any]) -> bool:
    score = row.get("score")
    return score is not None and not (isinstance(score, float) and math.isnan(score))


def _share(path: Path, number: int, value: object) -> float:
    amount = _number(path, number, value)
    if not 0.0 <= amount <= 1.0:
        raise DatasetError(f"{path}, row {number}: {value!r} is not in [0, 1]")
    return amount


def _number(path: Path, number: int, value: object) -> float:
    """Of what a router expected, earlier ones wrote a hair more than 1 or less than 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DatasetError(f"{path}, row {number}: {value!r} is not a number")
    return float(value)


def _prior(manifest: Manifest) -> Prior:
    rows = [*(manifest.score[category] for category in manifest.categories), manifest.overall]
    names = [expert.name for expert in manifest.experts]
    table = [[row[name] for name in names] for row in rows]
    return Prior(
        scores=np.array([[entry.score for entry in row] for row in table]),
        prompts=np.array([[entry.prompts for entry in row] for row in table], dtype=np.float64),
        errors=np.array([[np.nan if (e := entry.standard_error) is None else e for entry in row] for row in table]),
        z=manifest.z,
    )


def _moved(manifest: Manifest, shift: Shift) -> Manifest:
    names = [expert.name for expert in manifest.experts]

    def entries(row: int) -> dict[str, ScoreEntry]:
        return {
            name: ScoreEntry(
                score=float(shift.scores[row, column]),
                prompts=int(shift.prompts[row, column]),
                standard_error=None if np.isnan(error := shift.errors[row, column]) else float(error),
            )
            for column, name in enumerate(names)
        }

    by_category = {category: entries(row) for row, category in enumerate(manifest.categories)}
    return manifest.model_copy(update={"score": by_category, "overall": entries(len(manifest.categories))})
