"""How another router would have done, from a server's log: `coe-train compare`. Estimates only; changes nothing.

Where a shadow agrees with the router there is nothing to know. Where they disagree, only an answer of the shadow's
expert tells anything: a drawn one, weighted by its probability, or one that was compared with the served answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from coe_server.config.mistakes import first_mistake
from coe_server.errors import DatasetError
from coe_server.routing.intervals import FEWEST, Interval, interval
from router_training.config import Share
from router_training.data.rows import read_rows

Vector = npt.NDArray[np.float64]

JUDGED = "judge, compared answers"
BASELINE = 0.5  # of a score: it changes the spread of weighted values, not their mean


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How much better the shadow is where it disagrees, by one `source`; None for the interval if it is not known."""

    router_version: str
    source: str
    disagreements: int
    answers: int  # of the shadow's expert
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Served:
    """The mean rating of one router version that served, by one source."""

    router_version: str
    source: str
    ratings: int
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`decisions` with a shadow, how many `agree`, and what is known of the others and of each version that served."""

    decisions: int
    agree: int
    shadows: Sequence[Disagreement]
    served: Sequence[Served]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(path: Path) -> Comparison:
    """The comparison of a file written by `coe journal export`. Raises DatasetError naming file and row."""
    rows = [_checked(path, number, row) for number, row in read_rows(path)]
    shadowed = [row for row in rows if row.get("shadow")]
    apart = [row for row in shadowed if row["shadow"]["expert"] != _usual(row)]
    return Comparison(len(shadowed), len(shadowed) - len(apart), _shadows(apart), _served(rows))


def _checked(path: Path, number: int, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row. Raises DatasetError if it is no line that `coe journal export` writes."""
    try:
        _Line.model_validate(row)
    except ValidationError as error:
        wrong = first_mistake(error, row, _Line)
        raise DatasetError(f"{path}, row {number}: {wrong}; expected feedback.jsonl of `coe journal export`") from error
    return row


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Shadow(_Part):
    expert: str
    router_version: str


class _Exploration(_Part):
    drawn: str
    usual: str
    conversation: str
    probabilities: dict[str, Share]


class _Compared(_Part):
    expert: str
    score: Share
    own_score: Share


class _Line(_Part):
    """What the comparison reads of a line."""

    decision_id: str
    router_version: str
    expert: str
    ratings: dict[str, Share] | None = None
    exploration: _Exploration | None = None
    shadow: _Shadow | None = None
    compared: _Compared | None = None


def lines_of(found: Comparison) -> list[str]:
    """The comparison as sentences."""
    lines = []
    if found.decisions:
        lines.append(f"shadow: {found.agree:,} of {found.decisions:,} decisions agree with the router")
    for shadow in found.shadows:
        what = f"shadow {shadow.router_version}, {shadow.source}"
        told = _told(shadow.interval, signed=True)
        lines.append(
            f"{what}: {shadow.disagreements:,} disagreements, {shadow.answers} answers of its expert there: {told}"
        )
    lines += [
        f"router {one.router_version}, {one.source}: {one.ratings:,} conversations rated, mean {_told(one.interval)}"
        for one in found.served
    ]
    return lines or ["the log has neither a shadow's decisions nor ratings"]


def _told(found: Interval | None, signed: bool = False) -> str:
    if found is None:
        return f"not known (fewer than {FEWEST})"
    form = "+.1f" if signed else ".1f"
    mean, low, high = (format(100 * value, form) for value in (found.mean, found.low, found.high))
    return f"{mean} points, 95 % interval {low} to {high}"


def _usual(row: Mapping[str, Any]) -> str:
    """The router's choice without a draw."""
    drawn = row.get("exploration")
    return str(drawn["usual"] if drawn else row["expert"])


def _version(decided: Mapping[str, Any]) -> str:
    """The router's version without the number of learned steps."""
    return str(decided["router_version"]).partition("+")[0]


def _shadows(apart: Iterable[Mapping[str, Any]]) -> list[Disagreement]:
    by_version: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in apart:
        by_version[_version(row["shadow"])].append(row)
    found = []
    for version, rows in sorted(by_version.items()):
        sources = sorted({source for row in rows for source in row.get("ratings") or {}})
        for source in sources:
            values, answers = _weighted(rows, source)
            known = interval(values) if answers >= FEWEST else None
            found.append(Disagreement(version, source, len(rows), answers, known))
        paired = _paired(rows)
        if len(paired) or not sources:
            known = interval(paired) if len(paired) >= FEWEST else None
            found.append(Disagreement(version, JUDGED, len(rows), len(paired), known))
    return found


def _weighted(rows: Iterable[Mapping[str, Any]], source: str) -> tuple[Vector, int]:
    """(values, answers of the shadow's expert): one inversely weighted difference for each conversation that was drawn
    between both experts and rated."""
    groups: dict[str, list[tuple[Mapping[str, Any], float]]] = defaultdict(list)
    for row in rows:
        drawn, score = row.get("exploration"), (row.get("ratings") or {}).get(source)
        if drawn and score is not None and row["expert"] == drawn["drawn"]:
            groups[drawn["conversation"]].append((row, float(score)))
    values, answers = [], 0
    for group in groups.values():
        row, score = group[0][0], sum(given for _, given in group) / len(group)
        chances, other, usual = row["exploration"]["probabilities"], row["shadow"]["expert"], _usual(row)
        if min(chances.get(other, 0.0), chances.get(usual, 0.0)) <= 0.0:
            continue
        sign = (row["expert"] == other) / chances[other] - (row["expert"] == usual) / chances[usual]
        values.append((score - BASELINE) * sign)
        answers += row["expert"] == other
    return np.array(values), answers


def _paired(rows: Iterable[Mapping[str, Any]]) -> Vector:
    """[n]: how much better the shadow's expert did than the served one, where both answered."""
    found = []
    for row in rows:
        pair = row.get("compared")
        if pair and {pair["expert"], row["expert"]} == {row["shadow"]["expert"], _usual(row)}:
            sign = 1.0 if pair["expert"] == row["shadow"]["expert"] else -1.0
            found.append(sign * (float(pair["score"]) - float(pair["own_score"])))
    return np.array(found)


def _served(rows: Iterable[Mapping[str, Any]]) -> list[Served]:
    """The mean rating of each version that served; conversations count once."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        drawn = row.get("exploration")
        conversation = drawn["conversation"] if drawn else row["decision_id"]
        for source, score in (row.get("ratings") or {}).items():
            groups[_version(row), source][conversation].append(float(score))
    found = []
    for (version, source), by_conversation in sorted(groups.items()):
        means = np.array([sum(given) / len(given) for given in by_conversation.values()])
        found.append(Served(version, source, len(means), interval(means) if len(means) >= FEWEST else None))
    return found
