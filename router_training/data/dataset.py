"""Prompts and recorded outcomes, from JSONL or Parquet: read and checked.

Does not depend on features or models. A missing outcome is NaN, never zero.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coe_server.errors import DatasetError, RequestError
from coe_server.routing.conversation import Conversation, read_messages
from coe_server.routing.features import well_formed
from coe_server.system.visible import visible
from router_training.data.first_tokens import COLUMNS, FirstTokens
from router_training.data.provenance import FAULTS, WEAK, Provenance

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]
Row = Mapping[str, Any]

HEAVIEST = 1e9  # largest weight of a prompt: sums of squares of thousands of them stay finite
LONGEST_NAME = 200  # characters of a category, as an artifact's manifest keeps it
MOST_NAMED = 5  # prompts in a sentence
LONGEST_SHOWN = 80  # characters of a wrong value
OUTCOME_COLUMNS = ("prompt_id", "expert", "score", "scored_by", "fault", "output_tokens", *COLUMNS)
ONE_A_LINE = "expected one JSON object a line, or Parquet with a name that ends in .parquet"


@dataclass(frozen=True, slots=True)
class Dataset:
    """n prompts and their outcomes.

    `labels` [n] index `categories`, -1 where there is none; `scores` [n, experts] in [0, 1], NaN where missing;
    `groups` [n], "" where there is none; `weights` [n], 1 unless given. Near-duplicates have the same number in
    `copies` [n] after the search for them; before it each prompt has its own. `unscored` is the number of outcomes read
    without a score; subsets of rows do not keep it.
    """

    prompt_ids: tuple[str, ...]
    conversations: tuple[Conversation, ...]
    categories: tuple[str, ...]
    labels: Ints
    groups: npt.NDArray[np.str_]
    weights: Vector
    experts: tuple[str, ...]
    scores: Vector
    copies: Ints
    unscored: int = 0
    origin: Provenance | None = None  # None: all prompts are users', none is scored by agreement
    said: FirstTokens | None = None  # None: no lengths and no log-probabilities of answers

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def has_all_outcomes(self) -> npt.NDArray[np.bool_]:
        """[n]: True for prompts with an outcome from every expert."""
        return np.asarray(~np.isnan(self.scores).any(axis=1))

    @property
    def provenance(self) -> Provenance:
        """Where prompts and scores come from."""
        return self.origin or Provenance.plain(len(self))

    @property
    def only_trains(self) -> npt.NDArray[np.bool_]:
        """[n]: True for prompts that measure nothing: synthetic ones, and those weakly scored unless all are."""
        written, weak = self.provenance.synthetic, self.provenance.weak != ""
        return written if self.scored_by else np.asarray(written | weak)

    @property
    def scored_by(self) -> str | None:
        """The weak kind of its scores if there is no complete prompt of a user that was scored otherwise."""
        weak = self.provenance.weak
        complete = ~np.isnan(self.scores).any(axis=1) & ~self.provenance.synthetic
        kinds = np.unique(weak[weak != ""])
        return None if len(kinds) == 0 or (complete & (weak == "")).any() else str(kinds[0])

    @property
    def measures(self) -> npt.NDArray[np.bool_]:
        """[n]: True for prompts with an outcome from every expert that may measure a router."""
        return np.asarray(self.has_all_outcomes & ~self.only_trains)

    def rows(self, kept: Ints) -> Dataset:
        """The prompts with these row numbers."""
        return Dataset(
            tuple(self.prompt_ids[i] for i in kept),
            tuple(self.conversations[i] for i in kept),
            self.categories,
            self.labels[kept],
            self.groups[kept],
            self.weights[kept],
            self.experts,
            self.scores[kept],
            self.copies[kept],
            origin=self.origin and self.origin.rows(kept),
            said=self.said and self.said.rows(kept),
        )


def read_dataset(
    prompts: Sequence[Path],
    outcomes: Sequence[Path],
    experts: Sequence[str],
    label: str = "category",
) -> Dataset:
    """The prompts with the outcomes of `experts`; unknown columns are ignored.

    Raises DatasetError naming file and row.
    """
    columns = ("prompt_id", "prompt", "messages", label, "group", "weight", "synthetic")
    rows = [(path, number, row) for path in prompts for number, row in read_rows(path, columns)]
    ids = tuple(_text(path, number, row, "prompt_id") for path, number, row in rows)
    _refuse_duplicates(ids, prompts)
    labels = [_category(path, number, row, label) for path, number, row in rows]
    categories = tuple(sorted({name for name in labels if name is not None}))
    index = {name: position for position, name in enumerate(categories)}
    recorded = _read_scores(outcomes, ids, experts)
    return Dataset(
        prompt_ids=ids,
        conversations=tuple(_conversation(path, number, row) for path, number, row in rows),
        categories=categories,
        labels=np.array([-1 if name is None else index[name] for name in labels], dtype=np.int64),
        groups=np.array([_name(path, number, row, "group") or "" for path, number, row in rows]),
        weights=np.array([_weight(path, number, row) for path, number, row in rows]),
        experts=tuple(experts),
        scores=recorded.scores,
        copies=np.arange(len(ids)),
        unscored=int((recorded.null & np.isnan(recorded.scores)).sum()),
        origin=Provenance(
            np.array([_name(path, number, row, "synthetic") or "" for path, number, row in rows]),
            np.array(recorded.weak),
            recorded.faults,
        ),
        said=recorded.said,
    )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompts file, without outcomes."""

    prompt_id: str
    conversation: Conversation
    category: str | None


def read_prompts(paths: Sequence[Path], label: str = "category") -> list[Prompt]:
    """The prompts of files, in order. Raises DatasetError naming file and row."""
    columns = ("prompt_id", "prompt", "messages", label)
    return [
        Prompt(
            _text(path, number, row, "prompt_id"), _conversation(path, number, row), _category(path, number, row, label)
        )
        for path in paths
        for number, row in read_rows(path, columns)
    ]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """`scores` [prompts, experts], NaN where missing; `null`: without a score; `weak` [prompts]: the kind.

    `faults`: expert -> kind -> answers with score 0.
    """

    scores: Vector
    null: npt.NDArray[np.bool_]
    weak: list[str]
    faults: dict[str, Counter[str]]
    said: FirstTokens

    def note(self, path: Path, number: int, row: Row, position: int, expert: str) -> None:
        """Record the score, who gave it, what is wrong with the answer besides its content, and what its tokens say."""
        column = list(self.faults).index(expert)
        self.scores[position, column] = _number(path, number, row, "score", 1.0)
        if (kind := row.get("scored_by")) in WEAK:
            self.weak[position] = str(kind)
        if row["score"] == 0 and (fault := row.get("fault")) in FAULTS:
            self.faults[expert][str(fault)] += 1
        if (wrong := self.said.note(position, column, row)) is not None:
            raise DatasetError(f"{path}, row {number}: {wrong} must be a number up to 0, not {_shown(row[wrong])}")


def _read_scores(outcomes: Sequence[Path], ids: Sequence[str], experts: Sequence[str]) -> _Recorded:
    row_of = {name: position for position, name in enumerate(ids)}
    column_of = {name: position for position, name in enumerate(experts)}
    scores = np.full((len(ids), len(experts)), np.nan)
    recorded = _Recorded(
        scores,
        np.zeros(scores.shape, dtype=np.bool_),
        [""] * len(ids),
        {name: Counter() for name in experts},
        FirstTokens.empty(*scores.shape),
    )
    for path in outcomes:
        for number, row in read_rows(path, OUTCOME_COLUMNS):
            column = column_of.get(_text(path, number, row, "expert"))
            if column is None:
                raise DatasetError(
                    f"{path}, row {number}: unknown expert {_shown(row['expert'])} (known: {', '.join(experts)})"
                )
            position = row_of.get(_text(path, number, row, "prompt_id"))
            if position is None:
                continue  # an outcome file may cover more prompts than this run uses
            if "score" in row and _is_nothing(row["score"]):
                recorded.null[position, column] = True
                continue
            if not math.isnan(scores[position, column]):
                raise DatasetError(
                    f"{path}, row {number}: a second outcome of {_shown(row['expert'])} for prompt"
                    f" {_shown(row['prompt_id'])}"
                )
            recorded.note(path, number, row, position, experts[column])
    if np.isnan(scores).all():
        raise DatasetError(f"{_names(outcomes)}: {_nothing_recorded(len(ids), int(recorded.null.sum()))}")
    return recorded


def _nothing_recorded(prompts: int, null: int) -> str:
    if null:
        return f"no outcome of the {prompts} prompts has a score: {null} {'is' if null == 1 else 'are'} null"
    return f"no outcome belongs to any of the {prompts} prompts"


def read_rows(path: Path, columns: Collection[str] | None = None) -> Iterable[tuple[int, Row]]:
    """The rows of a JSONL or Parquet file, numbered from 1; of Parquet only these `columns`, if given.

    A lone surrogate, which JSON can express and UTF-8 cannot, is read as "?", as in serving.
    Raises DatasetError naming file and row.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    if path.suffix == ".parquet":
        return enumerate(_parquet_rows(path, columns), start=1)
    return _json_rows(path)


def _parquet_rows(path: Path, columns: Collection[str] | None) -> list[Row]:
    try:
        with pq.ParquetFile(path) as file:
            wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            table = file.read(wanted)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not a Parquet file: {' '.join(str(error).split())}") from error
    try:
        rows: list[Row] = table.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:  # text that is not UTF-8, times out of range
        raise DatasetError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return rows


def _json_rows(path: Path) -> Iterable[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _well_formed(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"{path}, row {number} is not JSON ({error}); {ONE_A_LINE}") from error
            if not isinstance(row, dict):
                raise DatasetError(f"{path}, row {number} is not an object; {ONE_A_LINE}")
            yield number, row


def _well_formed(value: Any) -> Any:
    """The value with lone surrogates replaced."""
    if isinstance(value, str):
        return value if value.isascii() else well_formed(value)
    if isinstance(value, list):
        return [_well_formed(one) for one in value]
    if isinstance(value, dict):
        return {well_formed(key): _well_formed(one) for key, one in value.items()}
    return value


def _conversation(path: Path, number: int, row: Row) -> Conversation:
    if isinstance(row.get("prompt"), str):
        return Conversation.of_prompt(row["prompt"])
    if not isinstance(row.get("messages"), list):
        raise DatasetError(f"{path}, row {number} has neither a text 'prompt' nor a list of 'messages'")
    try:
        return read_messages(row["messages"])
    except RequestError as error:
        raise DatasetError(f"{path}, row {number}: {error}") from error


def _text(path: Path, number: int, row: Row, column: str) -> str:
    value = _name(path, number, row, column)
    if value is None:
        raise DatasetError(f"{path}, row {number} has no {column!r}")
    return value


def _name(path: Path, number: int, row: Row, column: str) -> str | None:
    """A text, or a number as text (0 included); None for a missing value."""
    value = row.get(column)
    if value == "" or _is_nothing(value):
        return None
    if not isinstance(value, str | int | float):
        raise DatasetError(f"{path}, row {number}: {column} {_shown(value)} is not a text")
    return str(value)


def _category(path: Path, number: int, row: Row, column: str) -> str | None:
    """Control characters in a name are escaped: an artifact accepts no others."""
    said = _name(path, number, row, column)
    name = visible(said) if said is not None else None
    if name is not None and len(name) > LONGEST_NAME:
        raise DatasetError(f"{path}, row {number}: {column} has {len(name)} characters; the limit is {LONGEST_NAME}")
    return name


def _is_nothing(value: object) -> bool:
    """True for null, or NaN, which represents it in some tables."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def _weight(path: Path, number: int, row: Row) -> float:
    return 1.0 if _is_nothing(row.get("weight")) else _number(path, number, row, "weight", HEAVIEST)


def _number(path: Path, number: int, row: Row, column: str, largest: float) -> float:
    value = row.get(column)
    if value is None:
        raise DatasetError(f"{path}, row {number} has no {column!r}")
    if not isinstance(value, int | float | Decimal) or not 0.0 <= value <= largest:
        raise DatasetError(
            f"{path}, row {number}: {column} must be a number from 0 to {largest:g}, not {_shown(value)}"
        )
    return float(value)


def _shown(value: object) -> str:
    """A value for a message: its repr, truncated."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def named_prompts(ids: Sequence[str]) -> str:
    """The number of prompts and the ids of the first few, for a message."""
    few = ", ".join(_shown(name) for name in ids[:MOST_NAMED])
    more = ", ..." if len(ids) > MOST_NAMED else ""
    return f"{len(ids)} prompt{'' if len(ids) == 1 else 's'} ({few}{more})"


def _refuse_duplicates(ids: Sequence[str], prompts: Sequence[Path]) -> None:
    if not ids:
        raise DatasetError(f"{_names(prompts)}: no rows")
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DatasetError(f"{_names(prompts)}: prompt_id {_shown(name)} occurs twice")
        seen.add(name)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
