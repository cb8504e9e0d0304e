"""Prompts and recorded outcomes, from JSONL or Parquet: read and checked.

Does not depend on features or models. A missing outcome is NaN, never zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coe_server.errors import DatasetError
from coe_server.routing.conversation import Conversation
from router_training.data.first_tokens import COLUMNS, FirstTokens
from router_training.data.provenance import FAULTS, WEAK, Provenance
from router_training.data.rows import (
    Row,
    category_in,
    conversation_in,
    is_nothing,
    name_in,
    number_in,
    read_rows,
    shown_value,
    text_in,
    weight_in,
    writer_in,
)

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

WHAT_ONLY_TRAINS = "synthetic prompts, and those scored by consensus or certainty beside others, only train"
MOST_NAMED = 5  # prompts in a sentence
OUTCOME_COLUMNS = ("prompt_id", "expert", "score", "scored_by", "fault", "output_tokens", *COLUMNS)


@dataclass(frozen=True, slots=True)
class Dataset:
    """n prompts and their outcomes.

    `labels` [n] index `categories`, -1 where there is none; `scores` [n, experts] in [0, 1], NaN where missing;
    `groups` [n], "" where there is none; `weights` [n], 1 unless given. Near-duplicates have the same number in
    `copies` [n] after the search for them; before it each prompt has its own. `unscored` is the number of outcomes read
    without a score, `foreign` that of outcomes of other prompts; subsets of rows do not keep them.
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
    foreign: int = 0
    origin: Provenance | None = None  # None: all prompts are users', none is scored by agreement
    said: FirstTokens | None = None  # None: no lengths and no log-probabilities of answers

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def has_all_outcomes(self) -> npt.NDArray[np.bool_]:
        """[n]: True for prompts with an outcome from every expert."""
        return np.asarray(~np.isnan(self.scores).any(axis=1))

    @property
    def silent(self) -> npt.NDArray[np.bool_]:
        """[n]: True for prompts without text of a user."""
        return np.array([not any(turn.text.strip() for turn in talk.turns) for talk in self.conversations])

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

    def why_nothing_measures(self, side: str = "") -> str | None:
        """Why no prompt can measure a router, in a sentence; None if one can. `side`: which prompts these are."""
        complete = self.has_all_outcomes
        if not complete.any():
            known = ", ".join(self.experts)
            return f"none of the {len(self)} {side}prompts has an outcome from every expert ({known})"
        if not self.measures.any():
            return f"no {side}prompt with an outcome from every expert measures: {WHAT_ONLY_TRAINS}"
        if not (self.measures & (self.weights > 0.0)).any():
            return f"every {side}prompt with an outcome from every expert has weight 0"
        return None

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
    ids = tuple(text_in(path, number, row, "prompt_id") for path, number, row in rows)
    _refuse_duplicates(ids, prompts)
    labels = [category_in(path, number, row, label) for path, number, row in rows]
    categories = tuple(sorted({name for name in labels if name is not None}))
    index = {name: position for position, name in enumerate(categories)}
    recorded = _read_scores(outcomes, ids, experts)
    return Dataset(
        prompt_ids=ids,
        conversations=tuple(conversation_in(path, number, row) for path, number, row in rows),
        categories=categories,
        labels=np.array([-1 if name is None else index[name] for name in labels], dtype=np.int64),
        groups=np.array([name_in(path, number, row, "group") or "" for path, number, row in rows]),
        weights=np.array([weight_in(path, number, row) for path, number, row in rows]),
        experts=tuple(experts),
        scores=recorded.scores,
        copies=np.arange(len(ids)),
        unscored=int((recorded.null & np.isnan(recorded.scores)).sum()),
        foreign=len(recorded.foreign),
        origin=Provenance(
            np.array([writer_in(path, number, row) for path, number, row in rows]),
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
            text_in(path, number, row, "prompt_id"),
            conversation_in(path, number, row),
            category_in(path, number, row, label),
        )
        for path in paths
        for number, row in read_rows(path, columns)
    ]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """`scores` [prompts, experts], NaN where missing; `null`: without a score; `weak` [prompts]: the kind.

    `faults`: expert -> kind -> answers with score 0. `foreign`: the prompt_id of each outcome of another prompt.
    """

    scores: Vector
    null: npt.NDArray[np.bool_]
    weak: list[str]
    faults: dict[str, Counter[str]]
    said: FirstTokens
    foreign: list[str]

    def note(self, path: Path, number: int, row: Row, position: int, expert: str) -> None:
        """Record the score, who gave it, what is wrong with the answer besides its content, and what its tokens say."""
        column = list(self.faults).index(expert)
        self.scores[position, column] = number_in(path, number, row, "score", 1.0)
        if (kind := name_in(path, number, row, "scored_by")) in WEAK:
            self.weak[position] = str(kind)
        if (fault := name_in(path, number, row, "fault")) in FAULTS and row["score"] == 0:
            self.faults[expert][str(fault)] += 1
        if (wrong := self.said.note(position, column, row)) is not None:
            raise DatasetError(f"{path}, row {number}: {wrong} must be a number up to 0, not {shown_value(row[wrong])}")


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
        [],
    )
    for path in outcomes:
        for number, row in read_rows(path, OUTCOME_COLUMNS):
            column = column_of.get(text_in(path, number, row, "expert"))
            if column is None:
                raise DatasetError(
                    f"{path}, row {number}: unknown expert {shown_value(row['expert'])} (known: {', '.join(experts)});"
                    " leave its outcomes out, or name it among the experts"
                )
            position = row_of.get(asked := text_in(path, number, row, "prompt_id"))
            if position is None:
                recorded.foreign.append(asked)  # an outcome file may cover more prompts than this run uses
                continue
            if "score" in row and is_nothing(row["score"]):
                recorded.null[position, column] = True
                continue
            if not math.isnan(scores[position, column]):
                raise DatasetError(
                    f"{path}, row {number}: a second outcome of {shown_value(row['expert'])} for prompt"
                    f" {shown_value(row['prompt_id'])}"
                )
            recorded.note(path, number, row, position, experts[column])
    if np.isnan(scores).all():
        raise DatasetError(f"{_names(outcomes)}: {_nothing_recorded(ids, recorded)}")
    return recorded


def _nothing_recorded(ids: Sequence[str], recorded: _Recorded) -> str:
    if null := int(recorded.null.sum()):
        return f"no outcome of the {len(ids)} prompts has a score: {null} {'is' if null == 1 else 'are'} null"
    which = ""
    if recorded.foreign:
        theirs, ours = shown_value(recorded.foreign[0]), shown_value(ids[0])
        which = f": the first prompt_id is {theirs} here and {ours} in the prompts"
    return f"no outcome belongs to any of the {len(ids)} prompts{which}"


def named_prompts(ids: Sequence[str]) -> str:
    """The number of prompts and the ids of the first few, for a message."""
    few = ", ".join(shown_value(name) for name in ids[:MOST_NAMED])
    more = ", ..." if len(ids) > MOST_NAMED else ""
    return f"{len(ids)} prompt{'' if len(ids) == 1 else 's'} ({few}{more})"


def _refuse_duplicates(ids: Sequence[str], prompts: Sequence[Path]) -> None:
    if not ids:
        raise DatasetError(f"{_names(prompts)}: no rows")
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DatasetError(f"{_names(prompts)}: prompt_id {shown_value(name)} occurs twice")
        seen.add(name)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
