"""What a data set is like before anything is trained on it, and what in it a person should know. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from router_training.data.dataset import Dataset, Split


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Of near-duplicates: prompts that have one, those on their side of the split because of it (`moved`), sets that
    still stand on both sides (`across_split`), sets with more than one category."""

    prompts: int
    moved: int
    across_split: int
    with_other_category: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DataReport:
    """`categories` and `groups`: name -> prompts; `coverage`: expert -> share of prompts with its outcome; `silent`
    prompts say nothing, `unscored` outcomes have no score."""

    prompts: int
    conversations: int
    complete: int
    unlabelled: int
    silent: int
    unscored: int
    training: int
    held_out: int
    categories: dict[str, int]
    groups: dict[str, int]
    coverage: dict[str, float]
    means: dict[str, float]
    duplicates: DuplicateReport
    warnings: tuple[str, ...]


def check(dataset: Dataset, sides: Split, folds: int) -> DataReport:
    """The report of a data set whose near-duplicates are known, as it was split."""
    labels = [dataset.categories[label] for label in dataset.labels if label >= 0]
    recorded = ~np.isnan(dataset.scores)
    sums = np.where(recorded, dataset.scores, 0.0).sum(axis=0)
    report = DataReport(
        prompts=len(dataset),
        conversations=sum(len(conversation.turns) > 1 for conversation in dataset.conversations),
        complete=int(dataset.has_all_outcomes.sum()),
        unlabelled=int((dataset.labels < 0).sum()),
        silent=sum(not any(turn.text.strip() for turn in talk.turns) for talk in dataset.conversations),
        unscored=dataset.unscored,
        training=len(sides.training),
        held_out=len(sides.held_out),
        categories=dict(Counter(labels).most_common()),
        groups=dict(Counter(name for name in dataset.groups.tolist() if name).most_common()),
        coverage=dict(zip(dataset.experts, recorded.mean(axis=0).tolist(), strict=True)),
        means=dict(zip(dataset.experts, (sums / np.maximum(recorded.sum(axis=0), 1)).tolist(), strict=True)),
        duplicates=duplicate_report(dataset, sides),
        warnings=(),
    )
    return replace(report, warnings=tuple(_warnings(report, folds)))


def duplicate_report(dataset: Dataset, sides: Split) -> DuplicateReport:
    """What near-duplicates there are, and whether any stand on both sides of the split."""
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
    """What may make a router worse than it needs to be, each in one sentence."""
    same = report.duplicates
    small = [name for name, count in report.categories.items() if count < folds]
    incomplete = report.prompts - report.complete
    moved = "changed sides so that near-duplicates are not both trained on and judged by"
    few = f"fewer prompts than there are folds ({folds}): {', '.join(small[:5])}"
    sides = "both sides of the split"
    unjudged = "an outcome of some expert: no router is judged by them"
    counted = (
        (same.prompts, "prompt is a near-duplicate of another one", "prompts are near-duplicates of another one"),
        (same.moved, f"prompt {moved}", f"prompts {moved}"),
        (same.across_split, "set of near-duplicates is on", "sets of near-duplicates are on", sides),
        (same.with_other_category, "set of near-duplicates has", "sets of near-duplicates have", "several categories"),
        (len(small), "category has", "categories have", few),
        (report.unlabelled, "prompt has", "prompts have", "no category"),
        (report.silent, "prompt has", "prompts have", "no text of a user"),
        (report.unscored, "outcome has", "outcomes have", "no score (null or NaN): it counts as missing"),
        (incomplete, "prompt lacks", "prompts lack", unjudged),
    )
    found = [" ".join((str(count), one if count == 1 else many, *rest)) for count, one, many, *rest in counted if count]
    if len(report.groups) < 3:
        found.append("with fewer than three groups none is left out: harm outside the data stays unknown")
    return found
