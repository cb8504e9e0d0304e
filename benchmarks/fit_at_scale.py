"""Time and memory of `coe-train fit` on many prompts, with the named classifier and otherwise default settings.

A Markov chain of words makes the prompts from recorded ones (../shared/data, or the demo's if that is missing). Prints
the time of every stage that has a progress bar, and the longest time without a bar.

    python -m benchmarks.fit_at_scale --prompts 100000 [--classifier logistic] [--write] [--profile FILE]
"""

from __future__ import annotations

import argparse
import cProfile
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from benchmarks.document import document
from benchmarks.made_up_prompts import Given, write_made_up
from benchmarks.routing_quality import DATA, ROOT, SUITES
from router_training.config import TrainingConfig, read_config
from router_training.data.dataset import read_dataset
from router_training.fit import FitResult, fit

Item = TypeVar("Item")
SEED = 0
SHOWN_SECONDS = 1.0  # stages shorter than this are added up


@dataclass(frozen=True)
class Moment:
    """Wall-clock seconds, and processor seconds on all cores."""

    wall: float = field(default_factory=time.perf_counter)
    work: float = field(default_factory=time.process_time)

    def since(self, other: Moment) -> Moment:
        return Moment(self.wall - other.wall, self.work - other.work)


@dataclass
class Stages:
    """A `Track` that keeps the time of every progress bar, and the times between bars."""

    bars: dict[str, Moment] = field(default_factory=dict)
    silences: list[tuple[float, str]] = field(default_factory=list)
    last: Moment = field(default_factory=Moment)
    before: str = "the start"

    def __call__(self, items: Sequence[Item], what: str) -> Iterable[Item]:
        began = Moment()
        self.silences.append((began.wall - self.last.wall, self.before))
        yield from items
        self.last, self.before = Moment(), what
        took, spent = self.last.since(began), self.bars.get(what, Moment(0.0, 0.0))
        self.bars[what] = Moment(spent.wall + took.wall, spent.work + took.work)
        print(f"{took.wall:7.1f} s {what}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Record the time since the last bar."""
        self.silences.append((Moment().wall - self.last.wall, self.before))


def main() -> None:
    """Print the tables; with --write, also put them into the docs."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="fit-at-scale.") as workplace:
        # a separate process, so that the memory for making prompts does not count
        with get_context("spawn").Pool(1) as pool:
            config = pool.apply(_made_up, (options.prompts, options.classifier, Path(workplace)))
        stages, began = Stages(), Moment()
        run = partial(fit, config, Path(workplace) / "router", force=False, track=stages)
        result = _profiled(run, options.profile) if options.profile else run()
        took = Moment().since(began)
    stages.end()
    text = _text(options, result, stages, took)
    print(text)
    if options.write:
        document("fit at scale", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--classifier", default="logistic", choices=["logistic", "svm", "knn", "mlp"])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--profile", type=Path, help="write a profile by cProfile to this file")
    return parser.parse_args()


def _made_up(count: int, classifier: str, folder: Path) -> TrainingConfig:
    """The configuration of a run on `count` prompts, which are written into `folder`."""
    source = _source()
    data = source.data
    recorded = read_dataset(data.prompts, data.outcomes, source.expert_names, data.label)
    given = [
        Given(
            text="\n".join(turn.text for turn in talk.turns),
            category=recorded.categories[label],
            group=str(group),
            scores=dict(zip(recorded.experts, scores.tolist(), strict=True)),
        )
        for talk, label, group, scores in zip(
            recorded.conversations, recorded.labels, recorded.groups, recorded.scores, strict=True
        )
    ]
    prompts, outcomes = write_made_up(given, count, folder, SEED)
    data = data.model_copy(update={"prompts": [prompts], "outcomes": [outcomes]})
    named = source.classifier.model_copy(update={"kind": classifier})
    return source.model_copy(update={"data": data, "classifier": named})


def _source() -> TrainingConfig:
    return SUITES["coe5"].config("category") if DATA.is_dir() else read_config(ROOT / "configs" / "train-demo.yaml")


def _profiled(run: Callable[[], FitResult], file: Path) -> FitResult:
    profile = cProfile.Profile()
    result = profile.runcall(run)
    profile.dump_stats(file)
    return result


def _text(options: argparse.Namespace, result: FitResult, stages: Stages, took: Moment) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    silence, after = max(stages.silences)
    rows = [(what, spent) for what, spent in stages.bars.items() if spent.wall >= SHOWN_SECONDS]
    shipped = [name for name, why in result.refusals.items() if why is None]
    command = f"python -m benchmarks.fit_at_scale --prompts {options.prompts} --classifier {options.classifier}"
    return "\n".join(
        [
            "## Training at scale",
            "",
            f"`{command}`, {os.cpu_count()} cores: {options.prompts:,} prompts x {len(result.evaluation['experts'])}"
            f" experts in **{took.wall / 60:.1f} minutes** ({took.work / 60:.1f} core minutes), **{peak:.2f} GiB** at"
            f" the peak. The longest time without a progress bar: {silence:.1f} s, after {after!r}."
            f" Shipped: {', '.join(shipped) or 'nothing'}.",
            "",
            "| stage | s | core s |",
            "|---|---|---|",
            *(f"| {what} | {spent.wall:.1f} | {spent.work:.1f} |" for what, spent in rows),
            f"| all | {took.wall:.1f} | {took.work:.1f} |",
        ]
    )


if __name__ == "__main__":
    main()
