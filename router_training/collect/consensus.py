"""Scores answers by the agreement of other experts, and finds experts that copy each other's errors. Pure: no I/O.

An expert's own vote never scores it. The experts of a family count as one vote: they are declared, or found because
they give the same *wrong* answers more often than other pairs do. The weight of a vote is its expert's reliability,
estimated as in Dawid and Skene, "Maximum likelihood estimation of observer error-rates" (1979), without the scored
expert. Where fewer than two independent others agree, the score is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_AGREEING = 2  # independent others
LEAST_CERTAINTY = 0.9  # of the agreed answer
LEAST_SHARE = 0.2  # of a category's prompts with a score: fewer are not like the others
LEAST_FIT = 30  # prompts for reliabilities of a category's own
ROUNDS = 10
FIRST_RELIABILITY = 0.7
LEAST_WRONG = 10  # shared wrong prompts to judge a pair by
DEVIATIONS = 3.0  # of the bounds on shares of equal wrong answers
FAMILY_EXCESS = 0.3  # of what chance leaves of equal wrong answers
TYPICAL_PAIR = 0.4  # quantile of the pairs that each of two experts forms with the others: it counts as chance
LEAST_COMPARED = 2  # such pairs
AGREE_BY_CHANCE = 0.25  # quantile of all pairs' equal answers: the least agreeing pairs are rarely right together
MISSING = -1

Codes = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Family:
    """Two experts found to share errors: `same` of `wrong` prompts that both got wrong.

    `chance`: the share of equal wrong answers that either has with the other experts.
    """

    experts: tuple[str, str]
    same: int
    wrong: int
    chance: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """`scores` [prompts, experts]: 1, 0, or NaN where unknown. `families`: the votes, declared or `found`."""

    scores: Vector
    families: tuple[tuple[str, ...], ...]
    found: tuple[Family, ...]


def agreement(
    answers: Mapping[str, Sequence[str | None]], categories: Sequence[str], declared: Sequence[Sequence[str]] = ()
) -> Agreement:
    """Score `answers` (expert -> [prompts], None where missing) of prompts with these `categories`."""
    experts = tuple(answers)
    codes = _coded(list(answers.values()))
    votes = np.arange(len(experts))
    for family in declared:
        members = [experts.index(name) for name in family]
        votes[np.isin(votes, votes[members])] = min(votes[members])
    votes, found = _with_families(codes, votes, experts)
    kinds = np.unique(np.array(categories, dtype=np.str_), return_inverse=True)[1]
    columns = [_score(codes, votes, kinds, expert) for expert in range(len(experts))]
    scores = _without_rare(np.stack(columns, axis=1), kinds)
    groups = (tuple(name for name, vote in zip(experts, votes, strict=True) if vote == one) for one in np.unique(votes))
    return Agreement(scores, tuple(groups), tuple(found))


def _coded(columns: Sequence[Sequence[str | None]]) -> Codes:
    """[prompts, experts]: equal numbers in a row are equal answers."""
    rows = []
    for row in zip(*columns, strict=True):
        seen: dict[str, int] = {}
        rows.append([MISSING if one is None else seen.setdefault(one, len(seen)) for one in row])
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(columns))


def _score(codes: Codes, votes: Codes, kinds: Codes, expert: int) -> Vector:
    """[prompts]: the scores of one expert by the votes of other families."""
    others = np.flatnonzero(votes != votes[expert])
    agreed = np.full(len(codes), MISSING, dtype=np.int64)
    common = _reliabilities(codes[:, others], votes[others])
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        part = codes[np.ix_(rows, others)]
        own = _reliabilities(part, votes[others]) if len(rows) >= LEAST_FIT else common
        agreed[rows] = _agreed(part, votes[others], own)
    answered = (agreed != MISSING) & (codes[:, expert] != MISSING)
    return np.where(answered, (codes[:, expert] == agreed).astype(np.float64), np.nan)


def _agreed(codes: Codes, votes: Codes, reliabilities: Vector) -> Codes:
    """[prompts]: the answer that at least two votes agree on with certainty; else MISSING."""
    if not codes.shape[1]:
        return np.full(len(codes), MISSING, dtype=np.int64)
    same = _same(codes)
    certainty = _certainties(same, votes, reliabilities, _chance(same))
    best = certainty.argmax(axis=1)
    rows = np.arange(len(codes))
    is_known = (_supporters(same, votes)[rows, best] >= LEAST_AGREEING) & (certainty[rows, best] >= LEAST_CERTAINTY)
    return np.where(is_known, codes[rows, best], MISSING)


def _supporters(same: Flags, votes: Codes) -> Codes:
    """[prompts, voters]: how many families give each voter's answer."""
    families = [same[:, :, votes == one].any(axis=2) for one in np.unique(votes)]
    return np.asarray(np.sum(families, axis=0), dtype=np.int64)


def _same(codes: Codes) -> Flags:
    """[prompts, voters, voters]: True where both gave the same answer; False where one gave none."""
    there = codes != MISSING
    return np.asarray((codes[:, :, None] == codes[:, None, :]) & there[:, :, None] & there[:, None, :])


def _certainties(same: Flags, votes: Codes, reliabilities: Vector, chance: float) -> Vector:
    """[prompts, voters]: the probability that each voter's answer is right; `chance`: that two wrong ones are equal."""
    sizes = np.array([(votes == one).sum() for one in votes])  # a family's members share one vote
    weights = np.log(reliabilities / ((1.0 - reliabilities) * chance)) / sizes
    repeats = same.sum(axis=2)  # 0 where the voter gave no answer
    logits = np.where(repeats > 0, same @ weights, -np.inf)
    peak = np.maximum(logits.max(axis=1, keepdims=True), 0.0)
    odds = np.exp(logits - peak)
    shares = np.divide(1.0, repeats, out=np.zeros(repeats.shape), where=repeats > 0)  # sum to 1 over an answer's voters
    none = np.maximum(1.0 / chance + 1.0 - shares.sum(axis=1), 0.0) * np.exp(-peak[:, 0])  # no given answer is right
    total = (odds * shares).sum(axis=1) + none
    return np.asarray(odds / np.maximum(total, 1e-300)[:, None])


def _chance(same: Flags) -> float:
    """The probability that two wrong answers are equal, from the least agreeing pairs."""
    voters = same.shape[1]
    pairs = [float(same[:, a, b].mean()) for a in range(voters) for b in range(a)]
    return float(np.clip(np.quantile(pairs, AGREE_BY_CHANCE) if pairs else 0.0, 0.01, 0.5))


def _reliabilities(codes: Codes, votes: Codes) -> Vector:
    """[voters]: the estimated share of right answers of each."""
    reliabilities = np.full(codes.shape[1], FIRST_RELIABILITY)
    if not codes.size:
        return reliabilities
    same = _same(codes)
    chance, given = _chance(same), (codes != MISSING).sum(axis=0)
    for _ in range(ROUNDS):
        right = _certainties(same, votes, reliabilities, chance).sum(axis=0)
        reliabilities = np.clip((right + 1.0) / (given + 2.0), 0.05, 0.98)
    return reliabilities


def _with_families(codes: Codes, votes: Codes, experts: Sequence[str]) -> tuple[Codes, list[Family]]:
    """The votes after joining the clearest pair, one after the other, and the pairs."""
    found: list[Family] = []
    while (pair := _clearest_pair(codes, votes)) is not None:
        one, other, same, wrong, chance = pair
        votes = np.where(votes == max(votes[one], votes[other]), min(votes[one], votes[other]), votes)
        found.append(Family((experts[one], experts[other]), same, wrong, chance))
    return votes, found


def _clearest_pair(codes: Codes, votes: Codes) -> tuple[int, int, int, int, float] | None:
    """(expert, expert, equal wrong answers, prompts both got wrong, chance) of the pair furthest above chance."""
    counts = {}
    for one in range(codes.shape[1]):
        for other in range(one + 1, codes.shape[1]):
            if votes[one] != votes[other]:
                same, wrong = _shared_errors(codes, votes, one, other)
                if wrong >= LEAST_WRONG:
                    counts[one, other] = (same, wrong)
    clearest, furthest = None, 0.0
    for pair, (same, wrong) in counts.items():
        chance = _chance_beside(pair, counts)
        ahead = _lower_bound(same, wrong) - chance - FAMILY_EXCESS * (1.0 - chance)
        if ahead > furthest:
            clearest, furthest = (*pair, same, wrong, chance), ahead
    return clearest


def _chance_beside(pair: tuple[int, int], counts: Mapping[tuple[int, int], tuple[int, int]]) -> float:
    """The share of equal wrong answers that either of a pair has with the other experts; 1 if unknown."""
    others = {key: same / wrong for key, (same, wrong) in counts.items() if key != pair}
    alike = [share for key, share in others.items() if set(key) & set(pair)]
    if len(alike) < LEAST_COMPARED:  # where two are always right together, neither is wrong beside a third
        alike = list(others.values())
    return float(np.quantile(alike, TYPICAL_PAIR)) if len(alike) >= LEAST_COMPARED else 1.0


def _shared_errors(codes: Codes, votes: Codes, one: int, other: int) -> tuple[int, int]:
    """Prompts that both got wrong by the votes of other families: (with the same answer, all)."""
    others = np.flatnonzero((votes != votes[one]) & (votes != votes[other]))
    agreed = _agreed(codes[:, others], votes[others], _reliabilities(codes[:, others], votes[others]))
    first, second = codes[:, one], codes[:, other]
    wrong = (agreed != MISSING) & (first != MISSING) & (second != MISSING) & (first != agreed) & (second != agreed)
    return int((wrong & (first == second)).sum()), int(wrong.sum())


def _lower_bound(same: int, wrong: int) -> float:
    """The lower end of the Wilson interval of a share."""
    z2 = DEVIATIONS * DEVIATIONS
    share = same / wrong
    spread = DEVIATIONS * float(np.sqrt(share * (1.0 - share) / wrong + z2 / (4.0 * wrong * wrong)))
    return (share + z2 / (2.0 * wrong) - spread) / (1.0 + z2 / wrong)


def _without_rare(scores: Vector, kinds: Codes) -> Vector:
    """The scores, unknown where an expert has too few in a category: these are its easiest prompts."""
    kept = scores.copy()
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        rare = (~np.isnan(scores[rows])).mean(axis=0) < LEAST_SHARE
        kept[np.ix_(rows, np.flatnonzero(rare))] = np.nan
    return kept
