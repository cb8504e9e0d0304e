"""Near-duplicates, the report on a data set, and the conditions under which it can be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coe_server.errors import ConfigError, DatasetError
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import GENERAL, RouteOptions
from coe_server.routing.features import normalised, word_hashes
from coe_server.routing.selection import Capabilities, known_modalities, obstacle
from coe_server.system.visible import visible
from router_training import Track
from router_training.config import DEFAULT_LABEL, TrainingConfig
from router_training.data.dataset import Dataset, Split, named_prompts
from router_training.data.provenance import FAULTS, SCORED_BY_AGREEMENT


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

    `silent` prompts have no user text; `unscored` outcomes have no score.
    """

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
    zeros: dict[str, int]
    faults: Mapping[str, Mapping[str, int]]
    advantages: tuple[Advantage, ...]
    by_agreement: bool
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
        silent=sum(not any(turn.text.strip() for turn in talk.turns) for talk in dataset.conversations),
        unscored=dataset.unscored,
        training=len(sides.training),
        held_out=len(sides.held_out),
        categories=dict(Counter(labels).most_common()),
        groups=dict(Counter(name for name in dataset.groups.tolist() if name).most_common()),
        coverage=dict(zip(dataset.experts, recorded.mean(axis=0).tolist(), strict=True)),
        means=dict(zip(dataset.experts, (sums / np.maximum(recorded.sum(axis=0), 1)).tolist(), strict=True)),
        zeros=dict(zip(dataset.experts, (dataset.scores == 0.0).sum(axis=0).tolist(), strict=True)),
        faults=dataset.provenance.faults,
        advantages=tuple(_advantages(dataset)),
        by_agreement=dataset.by_agreement,
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
    if report.by_agreement:
        console.print(SCORED_BY_AGREEMENT, style="yellow", markup=False)
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


ANY = RouteOptions()


def require_trainable(sides: Split, config: TrainingConfig) -> None:
    """Raises DatasetError or ConfigError if `fit` would fail on these two sides.

    Pins and bans on discovered categories are checked after discovery.
    """
    _require_prompts(sides, config)
    _require_label(sides.training, config)
    _require_outcomes(sides, config)
    _require_takers(sides, config)
    if (sides.training.labels >= 0).any():
        require_categories(sides.training, config)


def require_categories(dataset: Dataset, config: TrainingConfig) -> None:
    """Raises DatasetError for a category with the gate's name, ConfigError if a pin, ban or probe names a category that
    is not in the data."""
    if GENERAL in dataset.categories:
        raise DatasetError(
            f"category {GENERAL!r} is the router's own name for prompts that are uncertain or unlike the training"
            " data; rename that category"
        )
    named = [("mapping: pins or bans name", name) for name in (*config.mapping.pins, *config.mapping.bans)]
    named += [("probes.own: one names", probe.category) for probe in config.probes.own if probe.category is not None]
    for where, name in named:
        if name != GENERAL and name not in dataset.categories:
            known = ", ".join(dataset.categories)
            raise ConfigError(f"{where} category {name!r}, which the data does not have ({known})")


def _require_prompts(sides: Split, config: TrainingConfig) -> None:
    """Raises DatasetError for an empty side, or training prompts too few for folds.

    Folds need two different prompts of one category, or two different prompts if none has a category.
    """
    share, training = config.data.held_out_share, sides.training
    prompts = len(training) + len(sides.held_out)
    for name, part in (("train on", training), ("measure by", sides.held_out)):
        if not len(part):
            raise DatasetError(
                f"data.held_out_share: {share:g} leaves none of the {prompts} prompts to {name}"
                + _why_so_few(sides, config)
            )
    _, first = np.unique(training.copies, return_index=True)
    if np.bincount(training.labels[first] + 1).max() < 2:
        raise DatasetError(
            f"the {len(training)} training prompts of {prompts} are too few: no category has two different ones "
            f"(data.held_out_share: {share:g})"
        )


def _why_so_few(sides: Split, config: TrainingConfig) -> str:
    """The part of an error message about prompts that must be on one side of the split."""
    copies = np.concatenate((sides.training.copies, sides.held_out.copies))
    if config.data.split_by == "prompt" and (different := len(np.unique(copies))) < len(copies):
        return f": near-duplicates stay together, and {different} of them are different"
    return ""


def _require_label(training: Dataset, config: TrainingConfig) -> None:
    if (training.labels >= 0).any():
        return
    if config.data.label != DEFAULT_LABEL:
        raise DatasetError(f"no training prompt has a {config.data.label!r}; data.label names the column")
    if config.data.categories != "auto":
        require_room(config.data.categories, len(training), len(np.unique(training.copies)))


def require_room(categories: int, prompts: int, different: int) -> None:
    """Raises DatasetError if with this many categories none would have two different prompts."""
    if categories >= different:
        raise DatasetError(
            f"data.categories: {categories} categories cannot be found in {prompts} prompts,"
            f" {different} of them different"
        )


def _require_outcomes(sides: Split, config: TrainingConfig) -> None:
    """Raises DatasetError without prompts to solve and evaluate on: with weight and an outcome of every expert."""
    for column in np.flatnonzero(np.isnan(np.vstack((sides.training.scores, sides.held_out.scores))).all(axis=0)):
        name = config.expert_names[column]
        raise DatasetError(f"expert {name!r} has no outcome: record some, or take it out of the config's experts")
    for name, part in (("training", sides.training), ("held-out", sides.held_out)):
        if not part.measures.any():
            raise DatasetError(
                f"none of the {len(part)} {name} prompts has an outcome from every expert"
                f" ({', '.join(config.expert_names)})"
            )
        if not (part.measures & (part.weights > 0.0)).any():
            raise DatasetError(f"every {name} prompt with an outcome from every expert has weight 0")


def _require_takers(sides: Split, config: TrainingConfig) -> None:
    """Raises ConfigError if no expert can take some prompt, for example one with images."""
    able = {
        one.name: Capabilities(one.context_tokens, known_modalities(one.sees, one.modalities), one.tools)
        for one in config.experts
    }
    untaken: list[str] = []
    obstacles: list[str] = []
    for part in (sides.training, sides.held_out):
        for name, conversation in zip(part.prompt_ids, part.conversations, strict=True):
            found = [obstacle(expert, None, one, conversation, ANY) for expert, one in able.items()]
            if None not in found:
                untaken.append(name)
                obstacles = obstacles or [f"{expert} {why}" for expert, why in zip(able, found, strict=True)]
    if untaken:
        raise DatasetError(
            f"no expert of the configuration can take {named_prompts(untaken)} ({'; '.join(obstacles)}):"
            " set vision, modalities or context_tokens of an expert that can, or leave these prompts out"
        )


LEAST_RESEMBLANCE = 0.8
BANDS, ROWS_PER_BAND = 16, 4  # finds 99.98 % of pairs that share 0.8, and proposes 12 % of those that share 0.3
CLEARLY_LESS = 0.6  # pairs whose signatures agree less are not compared word by word

Words = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]


def with_near_duplicates(dataset: Dataset, track: Track) -> Dataset:
    """The data set with `copies` set: near-duplicates have the same number."""
    return replace(dataset, copies=near_duplicates(dataset.conversations, track))


def near_duplicates(conversations: Sequence[Conversation], track: Track) -> Ints:
    """[n]: the first row in each prompt's connected set of near-duplicates."""
    words = [_words(conversation) for conversation in track(conversations, "looking for near-duplicates")]
    signatures = _signatures(words)
    parents = np.arange(len(words))
    for band in range(BANDS):
        for first, other in _proposals(signatures, band):
            one, another = _root(parents, first), _root(parents, other)
            if one != another and resemblance(words[first], words[other]) >= LEAST_RESEMBLANCE:
                parents[max(one, another)] = min(one, another)
    return np.array([_root(parents, row) for row in range(len(words))], dtype=np.int64)


def resemblance(one: Words, other: Words) -> float:
    """The Jaccard similarity of two ascending arrays without repeats."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def _words(conversation: Conversation) -> Words:
    return np.unique(word_hashes(normalised("\n".join(turn.text for turn in conversation.turns))))


def _signatures(words: Sequence[Words]) -> Words:
    """[n, BANDS * ROWS_PER_BAND]: MinHash signatures, one hash function per column."""
    generator = np.random.default_rng(0)  # fixed hash functions, independent of the run's seed
    factors = generator.integers(0, 1 << 32, BANDS * ROWS_PER_BAND, dtype=np.uint32) | np.uint32(1)
    offsets = generator.integers(0, 1 << 32, BANDS * ROWS_PER_BAND, dtype=np.uint32)
    signatures = generator.integers(0, 1 << 32, (len(words), len(factors)), dtype=np.uint32)
    for row, one in enumerate(words):
        if len(one):  # a prompt without words keeps a unique signature
            signatures[row] = (one[:, np.newaxis] * factors + offsets).min(axis=0)
    return signatures


def _proposals(signatures: Words, band: int) -> Ints:
    """[pairs, 2]: (first, other) of prompts equal in this band; each is paired with the first only."""
    columns = signatures[:, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]
    _, first, inverse = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    firsts = first[inverse.ravel()]
    others = np.flatnonzero(firsts != np.arange(len(firsts)))
    agreement = (signatures[firsts[others]] == signatures[others]).mean(axis=1)
    likely = others[agreement >= CLEARLY_LESS]
    return np.stack((firsts[likely], likely), axis=1)


def _root(parents: Ints, row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = int(parents[row])
    return row
