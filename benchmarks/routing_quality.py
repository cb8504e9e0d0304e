"""What routing gains on recorded outcomes of real models, with the default configuration and nothing seen beforehand.

Every prompt is decided by an artifact that `coe-train fit` would have made without it: in five folds by prompt, and
with each group (task) left out alone. Score table, gate, corrections and multipliers are fitted on the other prompts.
Needs ../shared/data, which is not part of the project. A finished fold is kept: run it again to go on, or with more
seeds. One fold takes about 10 s of processor time (nine), 80 s for coe5, more than twice that in finer categories.

    python -m benchmarks.routing_quality --seeds 5 --jobs 2 --write
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import KFold

from benchmarks.plain_regression import plain_regression
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.config import TrainingConfig
from router_training.cross_fit.draft import counted, learn
from router_training.data.dataset import Dataset, read_dataset
from router_training.data.embeddings import with_embeddings
from router_training.evaluation.evaluation import decide
from router_training.evaluation.metrics import Bootstrap, upper_hull
from router_training.evaluation.robustness import PERTURBATIONS, perturbed

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
PAGE = ROOT / "docs" / "routing-quality.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
FOLDS = 5
RESAMPLES = 1000
PLAIN = "plain logistic regression"
EMBEDDINGS = ROOT / "artifacts" / "embeddings"  # of every prompt, computed once
FEWEST = 25  # prompts of a finer category


@dataclass(frozen=True, slots=True)
class Suite:
    """A data set, its experts' sizes in billions of active parameters, and its objectives; `finer` is a column of
    finer categories, used where enough prompts have them."""

    name: str
    sizes: dict[str, float]
    budgets: dict[str, float | None]
    finer: str | None = None

    def config(self, label: str, sentences: Path | None = None) -> TrainingConfig:
        embedded = {"kind": "sentence-transformers", "model": str(sentences), "cache": EMBEDDINGS} if sentences else {}
        return TrainingConfig.model_validate(
            {
                "features": embedded,
                "data": {"prompts": [self.file("prompts")], "outcomes": [self.file("outcomes")], "label": label},
                "experts": [{"name": name, "active_params_b": size} for name, size in self.sizes.items()],
                "objectives": {name: {"active_params_b": budget} for name, budget in self.budgets.items()},
            }
        )

    def file(self, what: str) -> Path:
        return DATA / f"{self.name}_dev.{what}.parquet"


SUITES = {
    "nine": Suite(
        "nine",
        {
            "mistral-7b-instruct-v0.3": 7.2,
            "qwen2.5-7b-instruct": 7.6,
            "llama-3.1-8b-instruct": 8.0,
            "llama3-chatqa-1.5-8b": 8.0,
            "codegemma-7b": 8.5,
            "gemma-2-9b-it": 9.2,
            "llama-3.3-nemotron-super-49b-v1": 49.9,
            "llama-3.1-nemotron-51b-instruct": 51.5,
            "llama3-chatqa-1.5-70b": 70.6,
        },
        {"quality": None, "balanced": 30.0, "cheap": 15.0},
    ),
    "coe5": Suite(
        "coe5",
        {"qwen-7b": 7.6, "gemma-2-9b": 9.2, "gemma-2-27b": 27.2, "llama-3.1-70b": 70.6, "qwen-72b": 72.7},
        {"quality": None, "balanced": 54.0, "cheap": 31.0},
    ),
}
SUITES["coe5-finer"] = replace(SUITES["coe5"], finer="source_category")


@dataclass(frozen=True, slots=True)
class Unit:
    """One artifact to be made and asked: seed and fold, or seed -1 and the number of the group left out."""

    suite: str
    label: str
    seed: int
    fold: int
    sentences: Path | None = None  # a sentence-transformers model whose embeddings stand beside the n-grams

    @property
    def name(self) -> str:
        what = f"seed{self.seed}.fold{self.fold}" if self.seed >= 0 else f"group{self.fold}"
        return f"{self.suite}.{self.label}.{what}{'.sentences' if self.sentences else ''}.npz"


def main() -> None:
    """Runs what is missing, prints the table, writes it into the page if asked."""
    options = _options()
    if not DATA.is_dir():
        sys.exit(f"skipped: {DATA} is not there; the recorded outcomes are not part of the project")
    options.keep.mkdir(parents=True, exist_ok=True)
    units = [unit for suite in options.suites for unit in _units(suite, options)]
    missing = [unit for unit in units if not (options.keep / unit.name).exists()]
    with ProcessPoolExecutor(options.jobs) as pool:
        missing = [] if options.finished else missing
        for done, unit in enumerate(pool.map(_run, missing, [options.keep] * len(missing)), 1):
            print(f"{done} of {len(missing)}: {unit.name}", file=sys.stderr, flush=True)
    lines = ["| data | what | mean active B | score | gain, points | 95 % interval |", "|---|---|---|---|---|---|"]
    for suite in options.suites:
        lines += _table(suite, options)
    if options.sentences is None:
        lines += [
            "",
            "| data | change of a prompt | another expert | score, points | 95 % interval |",
            "|---|---|---|---|---|",
        ]
        lines += [line for suite in options.suites for line in _changes(suite, options)]
    print("\n".join(lines))
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--label", default="category", help="the column that names the category")
    parser.add_argument("--sentences", type=Path, help="a sentence-transformers model to embed by, beside the n-grams")
    parser.add_argument("--seeds", type=int, default=5, help="splits into five folds; 0: groups only")
    parser.add_argument("--no-groups", action="store_true", help="leave out the part that leaves groups out")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=ROOT / "artifacts" / "quality", help="finished folds")
    parser.add_argument("--finished", action="store_true", help="train nothing: a table of the seeds that are finished")
    parser.add_argument("--write", action="store_true", help="put the table into docs/routing-quality.md")
    return parser.parse_args()


def _units(suite: str, options: argparse.Namespace) -> Iterator[Unit]:
    for seed in range(options.seeds):
        yield from (Unit(suite, options.label, seed, fold, options.sentences) for fold in range(FOLDS))
    if not options.no_groups:
        groups = len(np.unique(dataset_of(suite, options.label).groups))
        yield from (Unit(suite, options.label, -1, group, options.sentences) for group in range(groups))


@cache
def dataset_of(suite: str, label: str) -> Dataset:
    config = SUITES[suite].config(label)
    read = partial(read_dataset, config.data.prompts, config.data.outcomes, config.expert_names)
    finer = SUITES[suite].finer
    return read(label) if finer is None else _refined(read(label), read(finer))


def _refined(coarse: Dataset, fine: Dataset) -> Dataset:
    """The same prompts in categories of the second, but of the first where a finer one has too few prompts."""
    names = np.array(coarse.categories)[coarse.labels]
    finer = np.array([f"{one}/{part}" for one, part in zip(names, np.array(fine.categories)[fine.labels], strict=True)])
    _, number, counts = np.unique(finer, return_inverse=True, return_counts=True)
    categories, labels = np.unique(np.where(counts[number] >= FEWEST, finer, names), return_inverse=True)
    return replace(coarse, categories=tuple(categories.tolist()), labels=labels.astype(np.int64))


def _run(unit: Unit, keep: Path) -> Unit:
    """Trains on the rest, saves, loads and asks; keeps each objective's choice for the prompts left out."""
    dataset, config = dataset_of(unit.suite, unit.label), SUITES[unit.suite].config(unit.label, unit.sentences)
    dataset = with_embeddings(dataset, config.features, in_silence)
    left_out = _left_out(unit, dataset)
    training = dataset.rows(np.setdiff1d(np.arange(len(dataset)), left_out))
    config = config.model_copy(update={"seed": max(unit.seed, 0)})
    learned = learn(training, counted(training, config, in_silence), config, in_silence)
    folder = keep / f"{unit.name}.artifact"
    artifacts.save(learned.draft, learned.kept, None, folder)
    router = Router.load(folder)
    asked = dataset.rows(left_out)
    decided = {name: decide(router, asked, name, in_silence) for name in router.objectives}
    chosen = {name: decisions.chosen for name, decisions in decided.items()}
    changed = _changed(router, asked, unit.seed) if unit.seed >= 0 and unit.sentences is None else {}
    chosen[PLAIN] = plain_regression(training, asked).argmax(axis=1)
    np.savez(keep / unit.name, left_out=left_out, inside=decided["quality"].inside, **chosen, **changed)
    return unit


def _changed(router: Router, asked: Dataset, seed: int) -> dict[str, Ints]:
    """The choice without a budget for the same prompts with changes that training has not seen, by kind."""
    draw = np.random.default_rng(seed)
    return {
        kind: decide(router, perturbed(asked, perturb, draw), "quality", in_silence).chosen
        for kind, perturb in PERTURBATIONS.items()
    }


def _left_out(unit: Unit, dataset: Dataset) -> Ints:
    if unit.seed < 0:
        return np.flatnonzero(dataset.groups == np.unique(dataset.groups)[unit.fold])
    splitter = KFold(FOLDS, shuffle=True, random_state=unit.seed)
    return np.asarray(list(splitter.split(np.arange(len(dataset))))[unit.fold][1])


def _table(suite: str, options: argparse.Namespace) -> list[str]:
    dataset, sizes = dataset_of(suite, options.label), np.array(list(SUITES[suite].sizes.values()))
    unit = partial(Unit, suite, options.label, sentences=options.sentences)
    by_seed = [[unit(seed, fold) for fold in range(FOLDS)] for seed in range(options.seeds)]
    by_seed = [units for units in by_seed if _are_finished(units, options.keep)]
    name = f"{suite} and sentences" if options.sentences else suite
    lines = []
    for objective, budget in SUITES[suite].budgets.items():
        if by_seed:
            chosen = np.stack([_pooled(units, objective, dataset, options.keep) for units in by_seed])
            what = "no budget" if budget is None else f"budget {budget:g} B, over the zero router at the cost spent"
            lines.append(_line(name, f"by prompt, {what}", chosen, budget is not None, dataset, sizes))
            if budget is None:
                plain = np.stack([_pooled(units, PLAIN, dataset, options.keep) for units in by_seed])
                lines += _beside_plain(name, "by prompt, no budget", chosen, plain, dataset, sizes)
    units = [unit(-1, group) for group in range(len(np.unique(dataset.groups)))]
    if not options.no_groups and _are_finished(units, options.keep):
        chosen = _pooled(units, "quality", dataset, options.keep)[np.newaxis]
        lines.append(_line(name, "each group left out, no budget", chosen, False, dataset, sizes))
        others = _best_of_the_others(suite, options.label, dataset)
        what = "the same over the single expert that is best on the other groups"
        lines.append(_line(name, what, chosen, False, dataset, sizes, others[np.newaxis]))
        plain = _pooled(units, PLAIN, dataset, options.keep)[np.newaxis]
        lines += _beside_plain(name, "each group left out, no budget", chosen, plain, dataset, sizes)
    return lines


def _beside_plain(name: str, what: str, chosen: Ints, plain: Ints, dataset: Dataset, sizes: Vector) -> Iterator[str]:
    """The plain regression's line, and this router's gain over it."""
    yield _line(name, f"{PLAIN}, {what}", plain, False, dataset, sizes)
    yield _line(name, f"this router over {PLAIN}, {what}", chosen, False, dataset, sizes, plain)


def _changes(suite: str, options: argparse.Namespace) -> Iterator[str]:
    """One line for each kind of change: share of prompts with another expert, and what that does to the mean score."""
    dataset, unit = dataset_of(suite, options.label), partial(Unit, suite, options.label)
    by_seed = [[unit(seed, fold) for fold in range(FOLDS)] for seed in range(options.seeds)]
    by_seed = [units for units in by_seed if _are_finished(units, options.keep)]
    rows = np.arange(len(dataset))
    for kind in PERTURBATIONS if by_seed else ():
        pairs = [
            (_pooled(units, "quality", dataset, options.keep), _pooled(units, kind, dataset, options.keep))
            for units in by_seed
        ]
        flips = np.mean([before != after for before, after in pairs], axis=0)
        change = np.mean(
            [dataset.scores[rows, after] - dataset.scores[rows, before] for before, after in pairs], axis=0
        )
        low, high = Bootstrap(RESAMPLES, 0).interval(
            change[:, np.newaxis], dataset.weights, lambda means: float(means[0])
        )
        share, mean = (float(np.average(one, weights=dataset.weights)) for one in (flips, change))
        yield f"| {suite} | {kind} | {share:.1%} | {100 * mean:+.2f} | {100 * low:+.2f} to {100 * high:+.2f} |"


def _best_of_the_others(suite: str, label: str, dataset: Dataset) -> Ints:
    """[n]: the expert with the best mean on all groups but the prompt's own, which is all that one could know."""
    best = np.empty(len(dataset), dtype=np.int64)
    for group in range(len(np.unique(dataset.groups))):
        left_out = _left_out(Unit(suite, label, -1, group), dataset)
        weights = dataset.weights.copy()
        weights[left_out] = 0.0
        best[left_out] = (weights @ dataset.scores).argmax()
    return best


def _are_finished(units: list[Unit], keep: Path) -> bool:
    return all((keep / unit.name).exists() for unit in units)


def _pooled(units: list[Unit], objective: str, dataset: Dataset, keep: Path) -> Ints:
    """[n]: the choice for every prompt, by the artifact that had not seen it."""
    chosen = np.full(len(dataset), -1, dtype=np.int64)
    for unit in units:
        with np.load(keep / unit.name) as kept:
            chosen[kept["left_out"]] = kept[objective]
    assert (chosen >= 0).all(), "the folds cover every prompt"
    return chosen


def _line(
    name: str, what: str, chosen: Ints, has_budget: bool, dataset: Dataset, sizes: Vector, rival: Ints | None = None
) -> str:
    """Mean over the seeds [seeds, n]; intervals resample prompts, all seeds of a prompt together.

    The gain is over each prompt's `rival` [seeds, n], if any, else over the best single expert in hindsight.
    """
    seeds, weights = len(chosen), dataset.weights
    taken = [dataset.scores[np.arange(len(dataset)), row] for row in chosen]
    rivals_scores = dataset.scores
    if rival is not None:
        rivals_scores = np.mean([dataset.scores[np.arange(len(dataset)), row] for row in rival], axis=0)
    columns = np.column_stack((*taken, *(sizes[row] for row in chosen), rivals_scores))

    def gain(means: Vector) -> float:
        scores, costs, experts = means[:seeds], means[seeds : 2 * seeds], means[2 * seeds :]
        hull = upper_hull(sizes, experts) if has_budget else None
        rivals = [float(experts.max()) if hull is None else hull.score_at(float(cost)) for cost in costs]
        return float(np.mean(scores - np.array(rivals)))

    means = weights @ columns / weights.sum()
    low, high = Bootstrap(RESAMPLES, 0).interval(columns, weights, gain)
    cost, score = float(means[seeds : 2 * seeds].mean()), float(means[:seeds].mean())
    return (
        f"| {name} | {what} ({seeds} seed{'s' * (seeds > 1)}) | {cost:.2f} | {100 * score:.2f} |"
        f" {100 * gain(means):+.2f} | {100 * low:+.2f} to {100 * high:+.2f} |"
    )


if __name__ == "__main__":
    main()
