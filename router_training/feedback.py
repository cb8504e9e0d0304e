"""Ratings of routed answers, as `coe journal export` writes them, and their effect on an artifact's scores. Pure.

The file is JSONL, one decision a line: `expert`, `inside`, `probabilities{category: p}`, `expected_score`, and `score`
(0 to 1), null where there is no rating. Decisions without a rating count as well: they tell how often an expert was
chosen.

A router that always takes the best expert yields ratings of that expert on the prompts it got, and no others: neither
of other experts nor of the category's other prompts. Inverse propensity weights correct this for random choices only:
here the propensity is 1 for the chosen expert and 0 for all others, so that the self-normalised estimate (Swaminathan
and Joachims, "The self-normalized estimator for counterfactual learning", 2015) is the plain mean of the observed
ratings, and 0/0 without any. Without assumptions about unobserved ratings, the following holds (Manski, "Nonparametric
bounds on treatment effects", 1990)

    mean over the category = share * mean where taken + (1 - share) * mean elsewhere

with `share` the expert's part of the category's requests. Elsewhere the trained score stands, as in the direct method
(Dudik, Langford and Li, "Doubly robust policy evaluation and learning", 2011), and where taken it is drawn towards the
trained score by as many prompts as that one rests on (ridge regression on the residuals, as the score table itself):

    score' = score + share * shrunken mean residual

So ratings are weighted down twice: by the number of prompts behind the trained score, and by the share of the category
that was observed. Without ratings no score moves, and neither does that of an expert never
chosen. Ratings must be on the scale of the outcomes that the router was trained on: it is not fitted.
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
from router_training.data.rows import read_rows, shown_value

Vector = npt.NDArray[np.float64]

LARGEST = 1e300  # number in a file: beyond it some have no float


@dataclass(frozen=True, slots=True)
class Rated:
    """The artifact with adjusted scores; `used` of the `given` ratings had experts and categories of the artifact."""

    artifact: Artifact
    used: int
    given: int


def with_feedback(artifact: Artifact, path: Path) -> Rated:
    """The artifact with its scores adjusted by the ratings in a file; step one and objectives do not change.

    Raises DatasetError naming file and row, or if no rating has an expert and categories of this artifact.
    """
    manifest = artifact.manifest
    rows = [(number, row) for number, row in read_rows(path)]
    known = [(number, row) for number, row in rows if _of(manifest, row)]
    ratings = _ratings(path, known, manifest)
    used = int((~np.isnan(ratings.scores)).sum())
    given = sum(_is_rated(row) for _, row in rows)
    if used == 0:
        raise DatasetError(f"{path}: {_no_rating_fits(given)}")
    return Rated(replace(artifact, manifest=_moved(manifest, shifted(_prior(manifest), ratings))), used, given)


def _no_rating_fits(given: int) -> str:
    if given == 0:
        return "has no ratings: no line has a score"
    return f"none of its {given} ratings has an expert and the categories of this artifact"


def _of(manifest: Manifest, row: Mapping[str, Any]) -> bool:
    """True if the decision's categories are these and the artifact has its expert."""
    probabilities = row.get("probabilities")
    return (
        isinstance(probabilities, dict)
        and set(probabilities) == set(manifest.categories)
        and row.get("expert") in [expert.name for expert in manifest.experts]
    )


def _ratings(path: Path, rows: Sequence[tuple[int, Mapping[str, Any]]], manifest: Manifest) -> Ratings:
    names = [expert.name for expert in manifest.experts]
    return Ratings(
        probabilities=np.array(
            [[_share(path, n, row["probabilities"][name]) for name in manifest.categories] for n, row in rows]
        ).reshape(len(rows), len(manifest.categories)),
        inside=np.array([_inside(path, n, row.get("inside", True)) for n, row in rows], dtype=np.bool_),
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
        raise DatasetError(f"{path}, row {number}: {shown_value(value)} is not in [0, 1]")
    return amount


def _number(path: Path, number: int, value: object) -> float:
    """An expected score. Earlier versions wrote values slightly outside [0, 1]; they are clipped."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise DatasetError(f"{path}, row {number}: {shown_value(value)} is not a number")
    return float(value)


def _inside(path: Path, number: int, value: object) -> bool:
    if not isinstance(value, bool):
        raise DatasetError(f"{path}, row {number}: inside must be true or false, not {shown_value(value)}")
    return value


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


Ints = npt.NDArray[np.int64]

LEAST_PROMPTS = 5.0  # a trained score counts as this many prompts at least, as training's own shrinkage does
UNKNOWN_ERROR = 0.5  # for a score with fewer than two prompts: the largest standard deviation of values in [0, 1]


@dataclass(frozen=True, slots=True)
class Ratings:
    """n decisions: `probabilities` [n, categories], `inside` the gate [n], the chosen `experts` [n], the scores that
    were `expected` of them [n], and the `scores` given [n], NaN where there is no rating."""

    probabilities: Vector
    inside: npt.NDArray[np.bool_]
    experts: Ints
    expected: Vector
    scores: Vector


@dataclass(frozen=True, slots=True)
class Prior:
    """The trained table, each [categories + 1, experts], overall means last; `errors` NaN where unknown. `z` standard
    errors are taken off every score already."""

    scores: Vector
    prompts: Vector
    errors: Vector
    z: float = 0.0


@dataclass(frozen=True, slots=True)
class Shift:
    """The score table updated with the ratings, in the shape of the prior."""

    scores: Vector
    prompts: Vector
    errors: Vector


def shifted(prior: Prior, ratings: Ratings) -> Shift:
    """The table adjusted by ratings: category scores by decisions inside the gate, overall scores by all."""
    memberships = np.hstack(
        (np.where(ratings.inside[:, np.newaxis], ratings.probabilities, 0.0), np.ones((len(ratings.inside), 1)))
    )
    shares = _shares(memberships, ratings.experts, prior.scores.shape[1])
    errors = np.nan_to_num(prior.errors, nan=UNKNOWN_ERROR)
    means = prior.scores + prior.z * errors
    scores, prompts, after = means.copy(), prior.prompts.copy(), prior.errors.copy()
    rated = ~np.isnan(ratings.scores)
    for expert in np.unique(ratings.experts[rated]):
        mine = rated & (ratings.experts == expert)
        strength = np.maximum(prior.prompts[:, expert], LEAST_PROMPTS)
        # expected scores are lower bounds if the table's scores are
        taken_off = prior.z * np.where(
            ratings.inside[mine], ratings.probabilities[mine] @ errors[:-1, expert], errors[-1, expert]
        )
        left_over = ratings.scores[mine] - ratings.expected[mine] - taken_off
        moves, spreads, counts = _residuals(memberships[mine], left_over, strength)
        share = shares[:, expert]
        scores[:, expert] = np.clip(means[:, expert] + share * moves, 0.0, 1.0)
        taken = share * counts / (counts + strength)  # the ratings' share of the new score
        combined = np.sqrt(((1.0 - taken) * errors[:, expert]) ** 2 + (share * spreads) ** 2)
        after[:, expert] = np.where(counts > 0.0, combined, prior.errors[:, expert])
        prompts[:, expert] += np.floor(share * counts)
    left = np.clip(scores - prior.z * np.nan_to_num(after, nan=UNKNOWN_ERROR), 0.0, 1.0)
    return Shift(left if prior.z else scores, prompts, after)


def _shares(memberships: Vector, experts: Ints, count: int) -> Vector:
    """[rows, experts]: each expert's share of each category's requests, and of all (last row)."""
    taken = memberships.T @ np.eye(count)[experts]
    return np.asarray(taken / np.maximum(memberships.sum(axis=0), 1e-12)[:, np.newaxis])


def _residuals(memberships: Vector, residuals: Vector, strength: Vector) -> tuple[Vector, Vector, Vector]:
    """One expert's mean residual in each row, drawn to 0, its standard error, and the ratings behind it.

    Categories by ridge regression, since a prompt is partly of several; the overall row by itself.
    """
    inside = memberships[:, :-1]
    influence = np.linalg.solve(inside.T @ inside + np.diag(strength[:-1]), inside.T)
    overall = np.full((1, len(residuals)), 1.0 / (len(residuals) + strength[-1]))
    influence = np.vstack((influence, overall))
    spread = residuals - residuals.mean() if len(residuals) > 1 else residuals
    return influence @ residuals, np.sqrt(influence**2 @ spread**2), memberships.sum(axis=0)
