"""What ratings of chosen experts say of the scores. Pure.

A router that always takes the best expert shows how that expert did where it was taken and nothing else: not what the
others would have done, nor how it would do on the category's other prompts. Inverse propensity weights, which mend this
for choices made by chance, have nothing to offer here: the propensity of what was chosen is 1 and of everything else 0,
so that the self-normalised estimate (Swaminathan and Joachims, "The self-normalized estimator for counterfactual
learning", 2015) is the plain mean of what was seen where something was, and 0/0 where nothing was. What can be said
without supposing anything about the unseen is (Manski, "Nonparametric bounds on treatment effects", 1990)

    mean over the category = share * mean where taken + (1 - share) * mean elsewhere

with `share` the expert's part of the category's requests. Elsewhere the trained score stands, as in the direct method
(Dudik, Langford and Li, "Doubly robust policy evaluation and learning", 2011), and where taken it is drawn towards the
trained score by as many prompts as that one rests on (ridge regression on the residuals, as the score table itself):

    score' = score + share * shrunken mean residual

So ratings are weighted down twice: few of them by the prompts behind the trained score, and any number of them by the
part of the category that they can speak for. Without ratings nothing moves, and nobody moves who was never taken.
Ratings must be on the scale of the outcomes that the router was trained on: it is not fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_PROMPTS = 5.0  # a trained score counts as this many prompts at least, as training's own shrinkage does
UNKNOWN_ERROR = 0.5  # of a score behind which fewer than two prompts stand: the most that scores in [0, 1] spread


@dataclass(frozen=True, slots=True)
class Ratings:
    """n decisions: `probabilities` [n, categories], `inside` the gate [n], the chosen `experts` [n], the scores that
    were `expected` of them [n], and the `scores` given [n], NaN where nobody rated."""

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
    """The table after the ratings, shaped as the prior."""

    scores: Vector
    prompts: Vector
    errors: Vector


def shifted(prior: Prior, ratings: Ratings) -> Shift:
    """Every score moved by what was rated: those of categories by decisions inside the gate, overall ones by all."""
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
        # where errors were taken off the scores, they were taken off what was expected as well
        taken_off = prior.z * np.where(
            ratings.inside[mine], ratings.probabilities[mine] @ errors[:-1, expert], errors[-1, expert]
        )
        left_over = ratings.scores[mine] - ratings.expected[mine] - taken_off
        moves, spreads, counts = _residuals(memberships[mine], left_over, strength)
        share = shares[:, expert]
        scores[:, expert] = np.clip(means[:, expert] + share * moves, 0.0, 1.0)
        taken = share * counts / (counts + strength)  # how much of the new score is the ratings'
        combined = np.sqrt(((1.0 - taken) * errors[:, expert]) ** 2 + (share * spreads) ** 2)
        after[:, expert] = np.where(counts > 0.0, combined, prior.errors[:, expert])
        prompts[:, expert] += np.floor(share * counts)
    left = np.clip(scores - prior.z * np.nan_to_num(after, nan=UNKNOWN_ERROR), 0.0, 1.0)
    return Shift(left if prior.z else scores, prompts, after)


def _shares(memberships: Vector, experts: Ints, count: int) -> Vector:
    """[rows, experts]: each expert's part of each category's requests, and of all (last row)."""
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
