"""Curves from an expert's certainty to P(right), and how good they are on prompts not fitted on. Pure.

The logistic regression is monotone: more certainty, or a higher expected score, is never less likely right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.stats import rankdata

from coe_server.routing.certainty import FIRST_TOKENS, SURE, WHOLE, CertaintyModel, Curve, Instead
from coe_server.routing.manifest import CurveEntry
from router_training.data.dataset import Dataset
from router_training.data.split import Fold

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

LEAST_PROMPTS = 30  # with log-probabilities and a score, for an expert's curves
RIGHT = 0.5  # from this score on an answer counts as right in the AUROC
RIDGE = 0.05  # on each slope, in standard deviations of its input: separable data have no finite slope
BINS = 10  # of the calibration error
TOKENS = (*FIRST_TOKENS, WHOLE)

PRIOR_PROMPTS = 5.0  # that an expert's overall mean counts for, beside those where another is right or wrong

Models = Mapping[str, CertaintyModel]


def fitted_models(dataset: Dataset, expected: Vector) -> dict[str, CertaintyModel]:
    """Expert -> its curves and what the others score instead; `expected` as in `fitted_curves`."""
    return {
        name: CertaintyModel(tuple(curves), fitted_instead(dataset, dataset.experts.index(name)))
        for name, curves in fitted_curves(dataset, expected).items()
    }


def fitted_instead(dataset: Dataset, first: int) -> dict[str, Instead]:
    """The other experts' mean scores where the expert in column `first` is right and where it is wrong."""
    weights = np.where(_is_told(dataset), dataset.weights, 0.0)
    found = {}
    for column, name in enumerate(dataset.experts):
        both = ~np.isnan(dataset.scores[:, first] + dataset.scores[:, column]) & (weights > 0.0)
        if column == first or not both.any():
            continue
        own, other, share = dataset.scores[both, first], dataset.scores[both, column], weights[both]
        share = share / share.mean()
        overall = float(np.average(other, weights=share))

        def mean_where(right: Vector, other: Vector = other, overall: float = overall) -> float:
            return float(np.clip((right @ other + PRIOR_PROMPTS * overall) / (right.sum() + PRIOR_PROMPTS), 0.0, 1.0))

        found[name] = Instead(mean_where(share * own), mean_where(share * (1.0 - own)))
    return found


def fitted_curves(dataset: Dataset, expected: Vector) -> dict[str, list[Curve]]:
    """Expert -> its curves; experts with too few recorded answers have none.

    `expected` [n, experts]: scores that the router expects without having seen the prompt, NaN where it says nothing.
    """
    if dataset.said is None:
        return {}
    found: dict[str, list[Curve]] = {}
    for column, name in enumerate(dataset.experts):
        usable = np.flatnonzero(_usable(dataset, column))
        if len(usable) < LEAST_PROMPTS:
            continue
        scores, weights = dataset.scores[usable, column], dataset.weights[usable]
        guesses, said = expected[usable, column], dataset.said.rows(usable)
        found[name] = [fitted_curve(tokens, said.of(tokens)[:, column], guesses, scores, weights) for tokens in TOKENS]
    return found


def fitted_curve(tokens: int, means: Vector, expected: Vector, scores: Vector, weights: Vector) -> Curve:
    """One curve from mean log-probabilities [n], expected scores [n] (NaN: none), scores [n] in [0, 1], weights [n]."""
    x = certainties(means)
    alone = _logistic_fit(x[:, np.newaxis], scores, weights)
    known = ~np.isnan(expected)
    if known.sum() < LEAST_PROMPTS:
        return Curve(tokens, alone[0], alone[1], 0.0, alone[0], alone[1])
    both = np.column_stack((x, expected))[known]
    intercept, slope, score = _logistic_fit(both, scores[known], weights[known])
    return Curve(tokens, intercept, slope, score, alone[0], alone[1])


def certainties(means: Vector) -> Vector:
    """[n]: mean log-probabilities on the scale of the curves."""
    return np.asarray(-np.log(SURE - np.minimum(means, 0.0)))  # as `coe_server.routing.certainty.certainty`


def probabilities(curve: Curve, means: Vector, expected: Vector) -> Vector:
    """[n]: P(right) by a curve; `expected` is NaN where the router says nothing, `means` where nothing was recorded."""
    x = certainties(means)
    alone = curve.alone_intercept + curve.alone_certainty * x
    both = curve.intercept + curve.certainty * x + curve.score * expected
    logits = np.where(np.isnan(expected), alone, both)
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -700.0, 700.0))))


def curve_entries(dataset: Dataset, expected: Vector, folds: Sequence[Fold]) -> dict[str, list[CurveEntry]]:
    """The curves of all prompts, each with its AUROC and calibration error on folds that it was not fitted on."""
    curves = fitted_curves(dataset, expected)
    unseen = {name: np.full((len(dataset), len(TOKENS)), np.nan) for name in curves}
    for fold in folds:
        for name, fitted in fitted_curves(dataset.rows(fold.seen), expected[fold.seen]).items():
            if name in unseen:
                column = dataset.experts.index(name)
                unseen[name][fold.left_out] = _predicted(
                    fitted, dataset.rows(fold.left_out), column, expected[fold.left_out]
                )
    entries = {}
    for name, fitted in curves.items():
        column = dataset.experts.index(name)
        rows = _usable(dataset, column)
        entries[name] = [
            _entry(curve, unseen[name][rows, at], dataset.scores[rows, column], dataset.weights[rows])
            for at, curve in enumerate(fitted)
        ]
    return entries


def _predicted(curves: Sequence[Curve], dataset: Dataset, column: int, expected: Vector) -> Vector:
    assert dataset.said is not None, "there are no curves without log-probabilities"
    found = [probabilities(one, dataset.said.of(one.tokens)[:, column], expected[:, column]) for one in curves]
    return np.column_stack(found)


def _entry(curve: Curve, predicted: Vector, scores: Vector, weights: Vector) -> CurveEntry:
    known = ~np.isnan(predicted)
    predicted, scores, weights = predicted[known], scores[known], weights[known]
    return CurveEntry(
        tokens=curve.tokens,
        intercept=curve.intercept,
        certainty=curve.certainty,
        score=curve.score,
        alone_intercept=curve.alone_intercept,
        alone_certainty=curve.alone_certainty,
        prompts=len(predicted),
        auroc=auroc(predicted, scores >= RIGHT),
        calibration_error=calibration_error(predicted, scores, weights) if len(predicted) else None,
    )


def auroc(predicted: Vector, right: npt.NDArray[np.bool_]) -> float | None:
    """The probability that a right answer [n] has the higher prediction than a wrong one; None without either."""
    good, bad = int(right.sum()), int((~right).sum())
    if not good or not bad:
        return None
    ranks = rankdata(predicted)
    return float((ranks[right].sum() - good * (good + 1) / 2) / (good * bad))


def calibration_error(predicted: Vector, scores: Vector, weights: Vector) -> float:
    """Mean distance of prediction and score over bins of equal counts, weighted."""
    bins = np.array_split(np.argsort(predicted, kind="stable"), min(BINS, len(predicted)))
    total = sum(abs(float(weights[rows] @ (predicted[rows] - scores[rows]))) for rows in bins)
    return min(total / (float(weights.sum()) or 1.0), 1.0)


def _usable(dataset: Dataset, column: int) -> npt.NDArray[np.bool_]:
    assert dataset.said is not None, "asked only where something is recorded"
    measured = ~np.isnan(dataset.scores[:, column]) & (dataset.weights > 0.0) & _is_told(dataset)
    return np.asarray(measured & dataset.said.recorded[:, column])


def _is_told(dataset: Dataset) -> npt.NDArray[np.bool_]:
    """[n]: prompts of users with scores that are not weak; those by certainty would calibrate it by itself."""
    return np.asarray(~dataset.provenance.synthetic & (dataset.provenance.weak == ""))


def _logistic_fit(inputs: Vector, scores: Vector, weights: Vector) -> list[float]:
    """[intercept, slopes...]: least cross-entropy with slopes of at least 0, for `inputs` [n, k]."""
    centre, spread = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), 1e-6)
    scaled = (inputs - centre) / spread
    shares = weights / weights.mean()
    # as Platt did: with the certainty of one more right and one more wrong answer, a class may be missing
    good = float(shares @ scores)
    bad = float(shares.sum()) - good
    targets = scores * (good + 1.0) / (good + 2.0) + (1.0 - scores) / (bad + 2.0)

    def loss(parameters: Vector) -> tuple[float, Vector]:
        logits = parameters[0] + scaled @ parameters[1:]
        value = shares @ (np.logaddexp(0.0, logits) - targets * logits) + RIDGE * (parameters[1:] @ parameters[1:])
        slope = shares * (1.0 / (1.0 + np.exp(-np.clip(logits, -700.0, 700.0))) - targets)
        return float(value), np.concatenate(([slope.sum()], slope @ scaled + 2.0 * RIDGE * parameters[1:]))

    bounds = [(None, None), *([(0.0, None)] * inputs.shape[1])]
    found = minimize(loss, np.zeros(1 + inputs.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
    slopes = found[1:] / spread
    return [float(found[0] - slopes @ centre), *slopes.tolist()]
