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
    """`categories` and `groups`: name -> prompts; `coverage`: expert -> share of prompts with its outcome."""

    prompts: int
    conversations: int
    complete: int
    unlabelled: int
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
    named = ", ".join(small[:5])
    judging = report.prompts - report.complete
    sentences = {
        f"{same.prompts} prompts are near-duplicates of another one": same.prompts,
        f"{same.moved} prompts changed sides so that near-duplicates are not both trained on and judged by": same.moved,
        f"{same.across_split} sets of near-duplicates are on both sides of the split": same.across_split,
        f"{same.with_other_category} sets of near-duplicates have more than one category": same.with_other_category,
        f"{len(small)} categories have fewer prompts than there are folds ({folds}): {named}": len(small),
        f"{report.unlabelled} prompts have no category": report.unlabelled,
        **{f"expert {name!r} has no outcome": share == 0.0 for name, share in report.coverage.items()},
        f"{judging} prompts lack an outcome of some expert: no router is judged by them": judging,
        "with fewer than three groups none is left out: harm outside the data stays unknown": len(report.groups) < 3,
    }
    return [sentence for sentence, applies in sentences.items() if applies]
