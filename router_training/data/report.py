"""The report on a data set: what `coe-train check` shows, with warnings about what may make a router worse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coe_server.system.visible import visible
from router_training.data.dataset import Dataset
from router_training.data.provenance import AGREEMENT, FAULTS, SCORED_BY
from router_training.data.split import Split


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Counts of near-duplicates.

    `prompts` that have one; those on their side of the split because of it (`moved`); sets that are still on both sides
    (`across_split`); sets with more than one category.
    """

    prompts: int
    moved: int
    across_split: int
    with_other_category: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DataReport:
    """`categories` and `groups`: name -> prompts; `coverage`: expert -> share of prompts with its outcome.

    `zeros`: expert -> outcomes with score 0, of which `faults` are for another reason than the content.

    `silent` prompts have no user text; `unscored` outcomes have no score, `foreign` ones are of other prompts.
    """

    prompts: int
    conversations: int
    complete: int
    unlabelled: int
    silent: int
    unscored: int
    foreign: int
    training: int
    held_out: int
    categories: dict[str, int]
    groups: dict[str, int]
    coverage: dict[str, float]
    means: dict[str, float]
    zeros: dict[str, int]
    faults: Mapping[str, Mapping[str, int]]
    advantages: tuple[Advantage, ...]
    by_agreement: bool
    scored_by: str | None
    duplicates: DuplicateReport
    warnings: tuple[str, ...]


def check(dataset: Dataset, sides: Split, folds: int) -> DataReport:
    """The report of a data set after the split, with near-duplicates found."""
    labels = [dataset.categories[label] for label in dataset.labels if label >= 0]
    recorded = ~np.isnan(dataset.scores)
    sums = np.where(recorded, dataset.scores, 0.0).sum(axis=0)
    report = DataReport(
        prompts=len(dataset),
        conversations=sum(len(conversation.turns) > 1 for conversation in dataset.conversations),
        complete=int(dataset.has_all_outcomes.sum()),
        unlabelled=int((dataset.labels < 0).sum()),
        silent=int(dataset.silent.sum()),
        unscored=dataset.unscored,
        foreign=dataset.foreign,
        training=len(sides.training),
        held_out=len(sides.held_out),
        categories=dict(Counter(labels).most_common()),
        groups=dict(Counter(name for name in dataset.groups.tolist() if name).most_common()),
        coverage=dict(zip(dataset.experts, recorded.mean(axis=0).tolist(), strict=True)),
        means=dict(zip(dataset.experts, (sums / np.maximum(recorded.sum(axis=0), 1)).tolist(), strict=True)),
        zeros=dict(zip(dataset.experts, (dataset.scores == 0.0).sum(axis=0).tolist(), strict=True)),
        faults=dataset.provenance.faults,
        advantages=tuple(_advantages(dataset)),
        by_agreement=dataset.scored_by == AGREEMENT,
        scored_by=dataset.scored_by,
        duplicates=duplicate_report(dataset, sides),
        warnings=(),
    )
    return replace(report, warnings=tuple(_warnings(report, folds)))


@dataclass(frozen=True, slots=True)
class Advantage:
    """How far an expert is ahead of the others' mean score: on `prompts` that it wrote, and on those of users."""

    expert: str
    prompts: int
    own: float
    elsewhere: float | None


def _advantages(dataset: Dataset) -> list[Advantage]:
    """Of each expert that wrote prompts."""
    writers = dataset.provenance.writers
    found = []
    for place, expert in enumerate(dataset.experts):
        rows = np.flatnonzero((writers == expert) & dataset.has_all_outcomes)
        users = np.flatnonzero((writers == "") & dataset.has_all_outcomes)
        if len(rows):
            elsewhere = _lead(dataset.scores[users], place) if len(users) else None
            found.append(Advantage(expert, len(rows), _lead(dataset.scores[rows], place), elsewhere))
    return found


def _lead(scores: npt.NDArray[np.float64], place: int) -> float:
    return float(scores[:, place].mean() - np.delete(scores, place, axis=1).mean())


def duplicate_report(dataset: Dataset, sides: Split) -> DuplicateReport:
    """The counts of near-duplicates, and of sets on both sides of the split."""
    _, inverse, counts = np.unique(dataset.copies, return_inverse=True, return_counts=True)
    categories: dict[int, set[int]] = {}
    for number, label in zip(inverse.tolist(), dataset.labels.tolist(), strict=True):
        if label >= 0 and counts[number] > 1:
            categories.setdefault(number, set()).add(label)
    return DuplicateReport(
        prompts=int(counts[counts > 1].sum()),
        moved=sides.moved,
        across_split=len(np.intersect1d(sides.training.copies, sides.held_out.copies)),
        with_other_category=sum(len(found) > 1 for found in categories.values()),
    )


def _warnings(report: DataReport, folds: int) -> list[str]:
    """Warnings about what may make a router worse, each in one sentence."""
    same = report.duplicates
    small = [name for name, count in report.categories.items() if count < folds]
    incomplete = report.prompts - report.complete
    moved = "moved to the other side: near-duplicates must not be in both training and evaluation"
    few = f"fewer prompts than there are folds ({folds}): {', '.join(small[:5])}"
    sides = "both sides of the split"
    unjudged = "an outcome of some expert: they are not used in evaluation"
    counted = (
        (same.prompts, "prompt is a near-duplicate of another one", "prompts are near-duplicates of another one"),
        (same.moved, f"prompt {moved}", f"prompts {moved}"),
        (same.across_split, "set of near-duplicates is on", "sets of near-duplicates are on", sides),
        (same.with_other_category, "set of near-duplicates has", "sets of near-duplicates have", "several categories"),
        (len(small), "category has", "categories have", few),
        (report.unlabelled, "prompt has", "prompts have", "no category"),
        (report.silent, "prompt has", "prompts have", "no text of a user"),
        (report.unscored, "outcome has", "outcomes have", "no score (null or NaN): it counts as missing"),
        (report.foreign, "outcome is", "outcomes are", "of prompts that are not in data.prompts: left out"),
        (incomplete, "prompt lacks", "prompts lack", unjudged),
    )
    found = [" ".join((str(count), one if count == 1 else many, *rest)) for count, one, many, *rest in counted if count]
    if len(report.groups) < 3:
        found.append("fewer than three groups, so none is left out: harm on new kinds of prompts cannot be measured")
    return found


LONGEST_TABLE = 40  # rows


def show_report(report: DataReport, console: Console) -> None:
    """The report, warnings last."""
    console.print(
        f"{report.prompts} prompts ({report.conversations} conversations of several turns), {report.complete} with an"
        f" outcome from every expert; {report.training} to train on, {report.held_out} held out"
    )
    if report.scored_by is not None:
        console.print(SCORED_BY[report.scored_by], style="yellow", markup=False)
    experts = Table("expert", "prompts with outcome", "mean score", "wrong", *FAULTS, title="experts")
    for name, share in report.coverage.items():
        counts = report.faults.get(name, {})
        faults = [counts.get(fault, 0) for fault in FAULTS]
        wrong = report.zeros[name] - sum(faults)
        mean = f"{report.means[name]:.3f}" if share else "-"
        experts.add_row(name, f"{share:.1%}", mean, str(wrong), *map(str, faults))
    console.print(experts)
    for title, counts in (("categories", report.categories), ("groups", report.groups)):
        if counts:
            console.print(_counts(title, counts.items(), report.prompts))
    for one in report.advantages:
        console.print(_written_by(one), markup=False)
    for sentence in report.warnings:
        console.print(f"note: {sentence}", style="yellow", markup=False)


def _written_by(one: Advantage) -> str:
    """A sentence on an expert's prompts. They train, and are never held out."""
    elsewhere = "no other prompt has all outcomes" if one.elsewhere is None else f"{one.elsewhere:+.3f} on users'"
    return (
        f"{visible(one.expert)} wrote {one.prompts} of the prompts: its score is {one.own:+.3f} from the other experts'"
        f" mean on these ({elsewhere}); they are trained on and never held out"
    )


def _counts(title: str, counts: Iterable[tuple[str, int]], prompts: int) -> Table:
    rows = list(counts)
    table = Table("name", "prompts", "share", title=f"{len(rows)} {title}")
    for name, count in rows[:LONGEST_TABLE]:
        table.add_row(Text(visible(name)), str(count), f"{count / prompts:.1%}")
    if len(rows) > LONGEST_TABLE:
        table.add_row(f"and {len(rows) - LONGEST_TABLE} more", str(sum(count for _, count in rows[LONGEST_TABLE:])), "")
    return table
