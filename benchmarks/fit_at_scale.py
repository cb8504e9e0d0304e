"""How long `coe-train fit` takes on many prompts and how much memory, with a named classifier and all else as usual.

The prompts are made up from recorded ones (../shared/data, or the demo's where that is missing) by a Markov chain of
words. Says how long every stage with a progress bar took, and the longest time in which no bar was to be seen.

    python benchmarks/fit_at_scale.py --prompts 100000 [--classifier logistic] [--write] [--profile FILE]
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
from router_training.pipeline import FitResult, fit

Item = TypeVar("Item")
SEED = 0
SHOWN_SECONDS = 1.0  # stages shorter than this are added up


@dataclass
class Stages:
    """A `Track` that keeps the seconds of every bar, and of the time between two of them."""

    seconds: dict[str, float] = field(default_factory=dict)
    silences: list[tuple[float, str]] = field(default_factory=list)
    last: tuple[float, str] = field(default_factory=lambda: (time.perf_counter(), "the start"))

    def __call__(self, items: Sequence[Item], what: str) -> Iterable[Item]:
        began = time.perf_counter()
        ended, before = self.last
        self.silences.append((began - ended, before))
        yield from items
        self.last = (time.perf_counter(), what)
        self.seconds[what] = self.seconds.get(what, 0.0) + self.last[0] - began
        print(f"{self.seconds[what]:7.1f} s {what}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The last silence ends here."""
        ended, before = self.last
        self.silences.append((time.perf_counter() - ended, before))


def main() -> None:
    """Prints the tables; keeps them if asked."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="fit-at-scale.") as workplace:
        # another process, so that what making prompts takes does not count
        with get_context("spawn").Pool(1) as pool:
            config = pool.apply(_made_up, (options.prompts, options.classifier, Path(workplace)))
        stages, began = Stages(), time.perf_counter()
        run = partial(fit, config, Path(workplace) / "router", force=False, track=stages)
        result = _profiled(run, options.profile) if options.profile else run()
        seconds = time.perf_counter() - began
    stages.end()
    text = _text(options, result, stages, seconds)
    print(text)
    if options.write:
        document("fit at scale", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--classifier", default="logistic", choices=["logistic", "svm", "knn", "mlp"])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--profile", type=Path, help="where to keep what cProfile saw")
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


def _text(options: argparse.Namespace, result: FitResult, stages: Stages, seconds: float) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    silence, after = max(stages.silences)
    rows = [(what, spent) for what, spent in stages.seconds.items() if spent >= SHOWN_SECONDS]
    unshown = sum(stages.seconds.values()) - sum(spent for _, spent in rows)
    rows += [("shorter stages", unshown), ("between bars", sum(length for length, _ in stages.silences))]
    shipped = [name for name, why in result.refusals.items() if why is None]
    command = f"python benchmarks/fit_at_scale.py --prompts {options.prompts} --classifier {options.classifier}"
    return "\n".join(
        [
            "## Training at scale",
            "",
            f"`{command}`, {os.cpu_count()} cores: {options.prompts:,} prompts x {len(result.evaluation['experts'])}"
            f" experts in **{seconds / 60:.1f} minutes** and **{peak:.2f} GiB** at the peak. The longest time without a"
            f" progress bar: {silence:.1f} s, after {after!r}. Shipped: {', '.join(shipped) or 'nothing'}.",
            "",
            "| stage | s |",
            "|---|---|",
            *(f"| {what} | {spent:.1f} |" for what, spent in rows),
        ]
    )


if __name__ == "__main__":
    main()
