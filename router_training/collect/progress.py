"""What a collection found of each expert, as it is printed, and the outcomes file."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from coe_server.config.addresses import shown_address
from coe_server.errors import DatasetError
from coe_server.system.visible import visible
from router_training.collect.by_agreement import Findings, show_findings
from router_training.collect.recording import Answer
from router_training.collect.scorers import Unscored
from router_training.collect.settings import Target
from router_training.data.first_tokens import COLUMNS, COUNT
from router_training.data.provenance import FAULTS, Fault

REASONS_SHOWN = 3


@dataclass(slots=True)
class ExpertTally:
    """One expert's outcomes and the reasons for missing ones; `open` ones may be filled by another run."""

    outcomes: list[Outcome] = field(default_factory=list)
    open: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    faults: Counter[Fault] = field(default_factory=Counter)

    def add_answer(self, answer: Answer) -> None:
        """Count an answer's tokens and time, scored or not."""
        self.answers += 1
        self.output_tokens += answer.output_tokens or 0
        self.seconds += answer.seconds

    def add_fault(self, fault: Fault | None) -> None:
        """Count an answer that is truncated, refused or unparsed."""
        if fault is not None:
            self.faults[fault] += 1

    def add_missing(self, why: Unscored) -> None:
        """Count a missing outcome."""
        (self.open if why.may_change else self.closed)[why.reason] += 1

    @property
    def missing(self) -> int:
        """The number of missing outcomes."""
        return self.open.total() + self.closed.total()

    @property
    def mean_score(self) -> float | None:
        """The mean over prompts with a score."""
        return fmean(outcome.score for outcome in self.outcomes) if self.outcomes else None


@dataclass(frozen=True, slots=True)
class Tally:
    """All experts, in the config's order."""

    by_expert: Mapping[str, ExpertTally]
    findings: Findings | None = None  # of the scorer `consensus`
    note: str | None = None  # what weak scores say

    @property
    def outcomes(self) -> Sequence[Outcome]:
        return [outcome for tally in self.by_expert.values() for outcome in tally.outcomes]

    @property
    def may_grow(self) -> bool:
        """True if running the same command again may add outcomes."""
        return any(tally.open for tally in self.by_expert.values())

    @property
    def is_hopeless(self) -> bool:
        """True if there is no outcome, and the same command again would add none."""
        return not self.outcomes and not self.may_grow

    @property
    def problems(self) -> list[str]:
        """A sentence for each of an expert's commonest reasons why outcomes are missing."""
        return [
            f"{expert}: {count:,} without an outcome: {reason}"
            for expert, tally in self.by_expert.items()
            for reason, count in (tally.open + tally.closed).most_common(REASONS_SHOWN)
        ]


SCHEMA = pa.schema(
    [("prompt_id", pa.string()), ("expert", pa.string()), ("score", pa.float64()), ("output_tokens", pa.int64())]
)
MARKS = ("scored_by", "fault")  # columns that are written only where an outcome has them


@dataclass(frozen=True, slots=True)
class Outcome:
    """`score` in [0, 1]; `output_tokens` is None where the endpoint does not count.

    `scored_by` is None unless other experts' answers scored it; `fault` says what is wrong besides the content.
    `certainty` has the columns of `first_tokens`, None without log-probabilities.
    """

    prompt_id: str
    expert: str
    score: float
    output_tokens: int | None
    scored_by: str | None = None
    fault: Fault | None = None
    certainty: Mapping[str, float] | None = None

    def as_row(self) -> dict[str, Any]:
        """The row of a file; marks and certainty only where there are some."""
        optional = (*MARKS, "certainty")
        row = {key: value for key, value in asdict(self).items() if key not in optional or value is not None}
        certainty = row.pop("certainty", {})
        return {**row, **certainty}


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """JSONL or Parquet, by the file's name; a file of that name is replaced when the new one is complete."""
    refuse_unknown_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as workplace:
        unfinished = Path(workplace) / path.name
        if path.suffix == ".parquet":
            _write_parquet(unfinished, outcomes)
        else:
            _write_jsonl(unfinished, outcomes)
        unfinished.replace(path)


def refuse_unknown_format(path: Path) -> None:
    """Raises DatasetError unless the file's name ends in .jsonl or .parquet."""
    if path.suffix not in {".jsonl", ".parquet"}:
        raise DatasetError(f"{path}: unsupported file type; use .jsonl or .parquet")


def _write_jsonl(path: Path, outcomes: Sequence[Outcome]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(outcome.as_row(), ensure_ascii=False) + "\n" for outcome in outcomes)
        file.flush()
        os.fsync(file.fileno())


def _write_parquet(path: Path, outcomes: Sequence[Outcome]) -> None:
    marks = [pa.field(mark, pa.string()) for mark in MARKS if any(getattr(one, mark) for one in outcomes)]
    known = COLUMNS if any(one.certainty for one in outcomes) else ()
    certainty = [pa.field(name, pa.int64() if name == COUNT else pa.float64()) for name in known]
    schema = pa.schema([*SCHEMA, *marks, *certainty])
    pq.write_table(pa.Table.from_pylist([outcome.as_row() for outcome in outcomes], schema=schema), path)


@dataclass(frozen=True, slots=True)
class Step:
    """The requests to one target: `recorded` ones and those `to_send` (for a judge: an upper bound)."""

    target: Target
    recorded: int
    to_send: int


def show_steps(steps: Sequence[Step], console: Console) -> None:
    """Print the requests that a run would send."""
    table = Table("asked", "at", "as model")
    for column in ("recorded", "to send"):
        table.add_column(column, justify="right")
    for step in steps:
        target = step.target
        table.add_row(
            target.name, shown_address(target.base_url), target.model, f"{step.recorded:,}", f"{step.to_send:,}"
        )
    console.print(table)
    console.print("All checks passed; nothing was sent. A judge's requests are an upper bound.")


def cost_factor(own: Sequence[Outcome], base: Sequence[Outcome]) -> float | None:
    """How many times as many tokens one writes as the other, over prompts for which both counted; None without any."""
    counted = {one.prompt_id: one.output_tokens for one in base if one.output_tokens is not None}
    pairs = [
        (one.output_tokens, counted[one.prompt_id]) for one in own if one.prompt_id in counted and one.output_tokens
    ]
    below = sum(tokens for _, tokens in pairs)
    return sum(tokens for tokens, _ in pairs) / below if below else None


def show_cost_factors(tally: Tally, bases: Mapping[str, str], console: Console) -> None:
    """Print, for each preset, what its thinking costs beside its base."""
    for name, base in bases.items():
        factor = cost_factor(tally.by_expert[name].outcomes, tally.by_expert[base].outcomes)
        if factor is not None:
            console.print(
                f"{name} writes {factor:.2f} times the tokens of {base}; for the training config:"
                f" {{name: {name}, of: {base}, cost_factor: {factor:.2f}}}",
                markup=False,
            )


def show_tally(tally: Tally, out: Path, raw: Path, console: Console) -> None:
    """Print scores, costs, missing outcomes with reasons, and the output files."""
    if tally.findings is not None:
        show_findings(tally.findings, console)
    if tally.note is not None:
        console.print(tally.note, style="yellow", markup=False)
    console.print(_table(tally))
    for problem in tally.problems:
        console.print(visible(problem), style="yellow", markup=False)
    if tally.may_grow:
        console.print(
            "Some requests failed or were not sent; the same command without --rescore sends only those.",
            style="yellow",
        )
    written = f"{len(tally.outcomes):,} outcomes -> {out}" if tally.outcomes else f"no outcomes; {out} was not written"
    console.print(f"{written}; every answer is in {raw}", markup=False)
    if tally.is_hopeless:
        agreeing = ", or of another scorer.compare (number, choice)" if tally.findings is not None else ""
        console.print(
            f"no answer could be scored, for the reasons above; name another scorer{agreeing} in the config, and"
            " --rescore scores the recorded answers",
            style="red",
            markup=False,
        )


def _table(tally: Tally) -> Table:
    """A row for each expert, narrow enough for 80 characters; faults that no expert has take no column."""
    faults = [fault for fault in FAULTS if any(one.faults[fault] for one in tally.by_expert.values())]
    apart = 1 if len(faults) > 1 else 2
    table = Table("expert", box=None, pad_edge=False, padding=(0, apart, 0, 0))
    for column in ("mean\nscore", "answers", "no\noutcome", *faults, "output\ntokens", "s per\nanswer"):
        table.add_column(column, justify="right")
    for expert, one in tally.by_expert.items():
        mean = "-" if one.mean_score is None else f"{one.mean_score:.3f}"
        per_answer = f"{one.seconds / one.answers:.2f}" if one.answers else "-"
        counts = (one.answers, one.missing, *(one.faults[fault] for fault in faults), one.output_tokens)
        table.add_row(expert, mean, *(f"{count:,}" for count in counts), per_answer)
    return table
