"""Logged turns with ratings -> the ratings that count, differences between experts, and the next step. Pure.

- A turn counts if its conversation's expert was drawn and that expert answered: no fallback, no requested name.
- All turns of a conversation are one rating, their mean.
- Each source of ratings has its own scale. The source with the most ratings is used; another one only after it was
  calibrated on enough conversations that have both.
- No key has more than its share of a cell (`learning.admitted`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from coe_server.routing.exploration import Learned
from coe_server.routing.intervals import FEWEST, Interval, differences, interval
from coe_server.routing.learning import Ratings, admitted, learned, stepped

Vector = npt.NDArray[np.float64]

JUDGED = "judge"  # the source of scores by an expert that compares two answers
SMALL_DIFFERENCE = 0.03  # of a score: a category is settled once no expert is better by more
FEWEST_WITH_BOTH = 30
SURE_SLOPE = 3.0  # standard errors of a calibration's slope above 0
UNRATED = 0.5
RATINGS_PER_STEP = 100


@dataclass(frozen=True, slots=True)
class Turn:
    """One logged turn of a drawn conversation. `answered`: the expert that answered; `scores` by source; `key`: the
    name of the client's key."""

    time: float
    conversation: str
    category: str
    drawn: str
    answered: str
    probabilities: Mapping[str, float]
    expected: float | None
    scores: Mapping[str, float]
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, both scored by the same judge. `expected`: as a turn's."""

    category: str
    experts: tuple[str, str]
    scores: tuple[float, float]
    expected: tuple[float, float] = (UNRATED, UNRATED)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better `other` is than `best` in a category; None while either was rated too rarely to say."""

    category: str
    best: str
    other: str
    ratings: int
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """The usable ratings of one `source`, `pooled` from others after calibration, and how many were left out, by
    reason."""

    source: str | None
    ratings: Ratings
    probabilities: Vector
    pairs: Sequence[Pair] = ()
    pooled: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ratings.scores) + len(self.pairs)

    @property
    def is_enough(self) -> bool:
        """True if there are enough ratings for a step."""
        return len(self) >= RATINGS_PER_STEP


def evidence(
    turns: Iterable[Turn], pairs: Sequence[Pair], rows: Mapping[str, int], columns: Mapping[str, int]
) -> Evidence:
    """What the log says about these categories (`rows`) and experts (`columns`)."""
    left_out: Counter[str] = Counter()
    found = _conversations(turns, rows, columns, left_out)
    source = _commonest(found)
    scales = {other: _calibration(found, other, source) for other in _sources(found) - {source}} if source else {}
    pooled: Counter[str] = Counter()
    scored: list[tuple[Turn, float]] = []
    for one in found:
        score, by = _score(one.scores, source, scales)
        if score is None:
            left_out[f"rated by another source than '{source}'"] += 1
            continue
        if by != source:
            pooled[by] += 1
        scored.append((one, score))
    keys = [f"key {one.key}" if one.key is not None else one.conversation for one, _ in scored]
    kept = admitted([(one.category, one.drawn) for one, _ in scored], keys)
    if not kept.all():
        left_out["one key has its share of the cell"] = int((~kept).sum())
    used = [pair for pair, counts in zip(scored, kept.tolist(), strict=True) if counts]
    judged = [one for one in pairs if one.category in rows and set(one.experts) <= columns.keys()]
    judged = judged if source in {JUDGED, None} else []
    if judged and source is None:
        source = JUDGED
    return _arrays(used, judged, source, rows, columns, pooled, left_out)


def next_step(found: Evidence, before: Learned, seed: int = 0) -> Learned:
    """The table one step on, its draws, and the categories that are settled."""
    goal = learned(_with_pairs(found, before), len(before.rows), len(before.columns), seed)
    shifts = stepped(before.shifts, goal.means)
    settled = frozenset(settled_categories(compared(found, before.rows, before.columns, goal.means)))
    return Learned(before.rows, before.columns, shifts, goal.draws, settled, before.steps + 1)


def resumed(found: Evidence, before: Learned, seed: int = 0) -> Learned:
    """The same table with draws and settled categories by these ratings."""
    after = next_step(found, before, seed)
    return Learned(before.rows, before.columns, before.shifts, after.draws, after.settled, before.steps)


def compared(found: Evidence, rows: Mapping[str, int], columns: Mapping[str, int], means: Vector) -> list[Difference]:
    """In each rated category, the best expert by the table `means` against each other.

    Only experts that could be drawn there, or were compared: others may be forbidden, as by a route.
    """
    names, ratings, differs = list(columns), found.ratings, []
    for category, row in rows.items():
        mine = ratings.categories == row
        judged = [one for one in found.pairs if one.category == category]
        if not mine.any() and not judged:
            continue
        counts = np.bincount(ratings.experts[mine], minlength=len(names))
        of_pairs = {name for one in judged for name in one.experts}
        possible = found.probabilities[mine].any(axis=0) | np.array([name in of_pairs for name in names])
        best = int(np.where(possible, _expected(ratings, mine, counts) + means[row], -np.inf).argmax())
        for other in np.flatnonzero(possible).tolist():
            if other == best:
                continue
            values = differences(ratings.experts[mine], ratings.scores[mine], found.probabilities[mine], other, best)
            paired = _paired(judged, names[other], names[best])
            enough = min(counts[best], counts[other]) >= FEWEST
            known = values if enough else np.zeros(0)
            if len(paired) > len(known):
                known = paired
            told = interval(known, SMALL_DIFFERENCE) if len(known) >= FEWEST else None
            differs.append(Difference(category, names[best], names[other], int(counts[other]) + len(paired), told))
    return differs


def _expected(ratings: Ratings, mine: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64]) -> Vector:
    """[experts]: what was expected of each in a category, of those without ratings as of the others."""
    sums = np.bincount(ratings.experts[mine], ratings.expected[mine], len(counts))
    overall = float(ratings.expected[mine].mean()) if mine.any() else UNRATED
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), overall))


def settled_categories(found: Iterable[Difference]) -> list[str]:
    """The categories in which no expert is better than the best by more than a small difference."""
    by_category: dict[str, list[Difference]] = defaultdict(list)
    for one in found:
        by_category[one.category].append(one)
    return [
        category
        for category, all_of_it in by_category.items()
        if all(one.interval is not None and one.interval.high <= SMALL_DIFFERENCE for one in all_of_it)
    ]


def _conversations(
    turns: Iterable[Turn], rows: Mapping[str, int], columns: Mapping[str, int], left_out: Counter[str]
) -> list[Turn]:
    """One turn for each conversation, in order of time, with its mean score by source."""
    groups: dict[str, list[Turn]] = defaultdict(list)
    for turn in turns:
        if turn.answered != turn.drawn:
            left_out["another expert answered than was drawn"] += 1
        elif turn.category not in rows or turn.drawn not in columns or not turn.probabilities.keys() <= columns.keys():
            left_out["the router does not have its category or expert"] += 1
        elif turn.scores:
            groups[turn.conversation].append(turn)
    found = []
    for group in groups.values():
        scores = defaultdict(list)
        for turn in group:
            for source, score in turn.scores.items():
                scores[source].append(score)
        first = min(group, key=lambda turn: turn.time)
        mean = {source: sum(given) / len(given) for source, given in scores.items()}
        found.append(
            Turn(
                first.time,
                first.conversation,
                first.category,
                first.drawn,
                first.answered,
                first.probabilities,
                first.expected,
                mean,
                first.key,
            )
        )
    return sorted(found, key=lambda turn: turn.time)


def _sources(found: Iterable[Turn]) -> set[str]:
    return {source for one in found for source in one.scores}


def _commonest(found: Sequence[Turn]) -> str | None:
    counts = Counter(source for one in found for source in one.scores)
    return min(counts, key=lambda source: (-counts[source], source)) if counts else None


def _calibration(found: Iterable[Turn], other: str, source: str) -> tuple[float, float] | None:
    """(intercept, slope) from the other source's scale to this one's; None unless it is sure that they agree."""
    both = np.array([(one.scores[other], one.scores[source]) for one in found if {other, source} <= one.scores.keys()])
    if len(both) < FEWEST_WITH_BOTH or np.ptp(both[:, 0]) == 0.0:
        return None
    x, y = both[:, 0] - both[:, 0].mean(), both[:, 1]
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    error = float(np.sqrt(rest @ rest / max(len(both) - 2, 1) / (x @ x)))
    if slope < SURE_SLOPE * error or slope <= 0.0:
        return None
    return float(y.mean() - slope * both[:, 0].mean()), slope


def _score(
    scores: Mapping[str, float], source: str | None, scales: Mapping[str, tuple[float, float] | None]
) -> tuple[float | None, str]:
    """The score on the scale of `source`, and the source it comes from; None if it cannot be put on that scale."""
    if source is not None and source in scores:
        return scores[source], source
    for other, score in sorted(scores.items()):
        scale = scales.get(other)
        if scale is not None:
            return min(max(scale[0] + scale[1] * score, 0.0), 1.0), other
    return None, ""


def _arrays(
    used: Sequence[tuple[Turn, float]],
    pairs: Sequence[Pair],
    source: str | None,
    rows: Mapping[str, int],
    columns: Mapping[str, int],
    pooled: Mapping[str, int],
    left_out: Mapping[str, int],
) -> Evidence:
    probabilities = np.zeros((len(used), len(columns)))
    for place, (turn, _) in enumerate(used):
        for name, chance in turn.probabilities.items():
            probabilities[place, columns[name]] = chance
    ratings = Ratings(
        np.array([rows[turn.category] for turn, _ in used], dtype=np.int64),
        np.array([columns[turn.drawn] for turn, _ in used], dtype=np.int64),
        np.array([score for _, score in used], dtype=np.float64),
        np.array([UNRATED if turn.expected is None else turn.expected for turn, _ in used], dtype=np.float64),
    )
    return Evidence(source, ratings, probabilities, pairs, dict(pooled), dict(left_out))


def _with_pairs(found: Evidence, before: Learned) -> Ratings:
    """The ratings, with both scores of each pair. The parts common to a category absorb what a prompt is worth."""
    if not found.pairs:
        return found.ratings
    one = found.ratings
    rows = np.repeat([before.rows[pair.category] for pair in found.pairs], 2).astype(np.int64)
    experts = np.array([before.columns[name] for pair in found.pairs for name in pair.experts], dtype=np.int64)
    scores = np.array([score for pair in found.pairs for score in pair.scores])
    return Ratings(
        np.concatenate((one.categories, rows)),
        np.concatenate((one.experts, experts)),
        np.concatenate((one.scores, scores)),
        np.concatenate((one.expected, [value for pair in found.pairs for value in pair.expected])),
    )


def _paired(pairs: Iterable[Pair], one: str, other: str) -> Vector:
    """[n]: differences between two experts' scores on the same prompts."""
    found = []
    for pair in pairs:
        if set(pair.experts) == {one, other}:
            first, second = pair.scores if pair.experts[0] == one else pair.scores[::-1]
            found.append(first - second)
    return np.array(found)
