"""What the demo's experts' own first tokens are worth: unsure answers handed over, with and without a router.

Run with `python -m benchmarks.handover`; `--write` keeps the table. It replays the answers and log-probabilities that
`demo/collect_outcomes.py` recorded from real engines. Curves, margins and what others score instead are found on random
halves of the training prompts; every figure is of the held-out prompts. Costs are active parameters times tokens
generated, those of abandoned answers included.

`--served 100` asks that many held-out questions of a server over real engines instead (ten minutes on two cores).
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.document import document
from coe_server.build.drafts import as_saved
from coe_server.config.routes import RoutesFile
from coe_server.routing.certainty import Instead
from coe_server.routing.own_routes.draft import draft
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.classifier.certainty import Models, fitted_models, probabilities
from router_training.config import read_config
from router_training.data.dataset import Dataset, read_dataset
from router_training.evaluation.evaluation import decide
from router_training.evaluation.handover import Played, Stage, by_rule, gain_of
from router_training.evaluation.metrics import Bootstrap
from router_training.fit import fit, joined

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/train-demo.yaml"
DRAWS, EXAMPLES, TOKENS, UNSCORED = 5, 3, 4, 20
TINY = 1e-9
BOOTSTRAP = Bootstrap(1000, 0)
MARGINS = np.linspace(-0.9, 0.9, 37)
NO_BUDGET_ASKS = 1.4
HOME = {"facts": "generalist"}  # the expert of a topic, where its name differs


NOTES = (
    'A gain counts what the cost saved, or spent, would buy otherwise. "Up to 5 times" may end where it began, at the'
    " expert that was surest; a topic",
    "left out has its own expert rated 0 by overall means, so nearly all experts are asked for four tokens. Right"
    " answers to all topics calibrated the curves.",
)

Measure = Callable[[Dataset, Dataset, int, int], "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One draw: scores without and with, the gain at equal cost with its interval, asks for each prompt, cost share."""

    without: float
    with_it: float
    gain: float
    low: float
    high: float
    asks: float
    cost: float


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--served", type=int, metavar="QUESTIONS", help="ask a server over real engines instead")
    asked.add_argument("--draw", type=int, default=0, help="of the examples and questions, with --served")
    asked.add_argument("--write", action="store_true")
    options = asked.parse_args()
    if options.served:
        from benchmarks.handover_served import served  # noqa: PLC0415 - it builds on this module

        text = served(options.draw, options.served)
    else:
        text = table(read("train"), read("held_out"))
    print(text)
    if options.write:
        document("handover served" if options.served else "handover", text)


def read(split: str) -> Dataset:
    """The demo's prompts and outcomes of a split."""
    data, names = ROOT / "demo/data", read_config(CONFIG).expert_names
    return read_dataset([data / f"{split}.prompts.jsonl"], [data / f"{split}.outcomes.jsonl"], names)


def half(dataset: Dataset, draw: int) -> Dataset:
    """A random half of the prompts."""
    rows = np.random.default_rng(draw).permutation(len(dataset))[: len(dataset) // 2]
    return dataset.rows(np.sort(rows))


def unrouted(dataset: Dataset, first: Ints | str, overall: Vector) -> Stage:
    """A stage where nothing is known of a prompt but the experts' overall means."""
    costs = [expert.active_params_b or 0.0 for expert in read_config(CONFIG).experts]
    column = np.full(len(dataset), dataset.experts.index(first)) if isinstance(first, str) else first
    allowed = np.tile(overall, (len(dataset), 1))
    return Stage.of(dataset, allowed, column, np.zeros(len(dataset)), np.zeros(len(dataset), dtype=np.bool_), costs)


def chained(stage: Stage, models: Models, margin: float, at_most: int) -> tuple[Played, float]:
    """Up to `at_most` handovers after TOKENS tokens each, and the mean number of experts asked.

    The next expert is the one with the highest expected score, by all that were unsure before it; it may be one of
    those, which answers from the beginning, if it was surer.
    """
    names, dataset = stage.dataset.experts, stage.dataset
    assert dataset.said is not None
    means = dataset.said.of(TOKENS)
    right = np.column_stack(
        [
            probabilities(models[name].curve(TOKENS), means[:, place], stage.expected[:, place])
            for place, name in enumerate(names)
        ]
    )
    rows, last = np.arange(len(dataset)), stage.first.copy()
    asked = np.zeros(right.shape, dtype=np.bool_)
    asked[rows, last] = True
    spent, asks, is_open = np.zeros(len(dataset)), np.ones(len(dataset)), np.ones(len(dataset), dtype=np.bool_)
    expected = np.where(stage.known[:, np.newaxis], stage.allowed, np.inf)
    for _ in range(at_most):
        expected = np.minimum(expected, _expected_instead(stage, models, right, last))
        left = np.where(asked, right + min(margin, 0.0), expected)
        left[rows, last] = -np.inf
        best = left.argmax(axis=1)
        is_open &= left[rows, best] - right[rows, last] > margin
        wasted = stage.costs[last] * np.minimum(stage.lengths[rows, last], TOKENS / stage.unit)
        spent += np.where(is_open, wasted, 0.0)
        last = np.where(is_open, best, last)
        asks += is_open
        is_open &= ~asked[rows, best]  # an expert is judged once
        asked[rows, last] = True
    spent += stage.spent[rows, last]
    return Played(dataset.scores[rows, last], spent, asks > 1), float(asks.mean())


def _expected_instead(stage: Stage, models: Models, right: Vector, last: Ints) -> Vector:
    """[n, experts]: what the others score after the `last` expert [n] was this unsure; inf where the router says it."""
    names = stage.dataset.experts
    expected = np.full(right.shape, np.inf)
    for first, name in enumerate(names):
        rows = np.flatnonzero((last == first) & ~stage.known)
        for other, one in models[name].instead.items():
            mine = right[rows, first]
            expected[rows, names.index(other)] = mine * one.where_right + (1.0 - mine) * one.where_wrong
    return expected


def found_margin(stage: Stage, models: Models, at_most: int, most_asks: float = np.inf) -> float:
    """The margin with the best score; of those with equal scores the one that asks least."""
    tried = [(chained(stage, models, float(margin), at_most), float(margin)) for margin in MARGINS]
    allowed = [(float(one.scores.mean()), -asks, margin) for (one, asks), margin in tried if asks <= most_asks]
    return max(allowed)[2]


def measured(stage: Stage, models: Models, margin: float, at_most: int) -> Row:
    """One draw on the held-out prompts."""
    one, asks = chained(stage, models, margin, at_most)
    gain = gain_of(stage, one, BOOTSTRAP)
    rows = np.arange(len(stage.first))
    before = float(stage.dataset.scores[rows, stage.first].mean())
    cost = float(one.spent.mean() / stage.spent[rows, stage.first].mean())
    return Row(before, gain.score, gain.gain, gain.low, gain.high, asks, cost)


def drafted(train: Dataset, held_out: Dataset, at_most: int, draw: int) -> Row:
    """A router from three examples a topic, with handover found on other prompts."""
    routes = RoutesFile.model_validate(example_routes(train, random.Random(draw)))
    router = Router(as_saved(draft(routes)))
    fitted = half(train, draw)
    models = fitted_models(fitted, np.full(fitted.scores.shape, np.nan))
    overall = fitted.scores.mean(axis=0)

    def stage(dataset: Dataset) -> Stage:
        return unrouted(dataset, decide(router, dataset, router.objectives[0], in_silence).chosen, overall)

    return measured(stage(held_out), models, found_margin(stage(fitted), models, at_most), at_most)


def example_routes(train: Dataset, chance: random.Random) -> dict[str, Any]:
    """The content of a routes file with EXAMPLES prompts of each topic."""
    routes = {}
    for number, category in enumerate(train.categories):
        rows = chance.sample(np.flatnonzero(train.labels == number).tolist(), EXAMPLES)
        texts = [train.conversations[row].turns[-1].text for row in rows]
        routes[category] = {"expert": HOME.get(category, category), "examples": texts}
    return {"routes": routes, "default": "generalist"}


def generalist(train: Dataset, held_out: Dataset, at_most: int, draw: int) -> Row:
    """No router: the generalist first, with the margin that asks at most NO_BUDGET_ASKS times on the fitted prompts."""
    fitted = half(train, draw)
    models = fitted_models(fitted, np.full(fitted.scores.shape, np.nan))
    overall = fitted.scores.mean(axis=0)
    margin = found_margin(unrouted(fitted, "generalist", overall), models, at_most, NO_BUDGET_ASKS)
    return measured(unrouted(held_out, "generalist", overall), models, margin, at_most)


def without_topic(train: Dataset, held_out: Dataset, at_most: int, draw: int, unscored: int = 0) -> Row:
    """Each topic left out in turn, its prompts answered by overall means of the others; all topics together.

    Curves need right answers to an expert's own topic, so they are of all topics. Overall means, what others score
    instead, and the margin, found with a further topic left out in turn, know nothing of the topic. With `unscored`
    prompts of the topic, of which all experts' log-probabilities but no scores are known, these say what others score.
    """
    fitted = half(train, draw)
    models = fitted_models(fitted, np.full(fitted.scores.shape, np.nan))

    def left_out(others: Dataset, dataset: Dataset, topic: int) -> tuple[Stage, Models]:
        stage, known = _left_out(others, dataset, topic, models)
        if unscored:
            rows = np.flatnonzero(fitted.labels == topic)
            seen = np.random.default_rng([draw, topic]).permutation(rows)[:unscored]
            known = _by_certainty(models, fitted.rows(seen))
        return stage, known

    rows: list[tuple[Stage, Played, float]] = []
    for topic in range(len(train.categories)):
        others = fitted.rows(np.flatnonzero(fitted.labels != topic))
        tried = {float(margin): 0.0 for margin in MARGINS}
        for further in range(len(train.categories)):
            if further != topic:
                stage, known = left_out(others, others, further)
                for margin in tried:
                    tried[margin] += float(chained(stage, known, margin, at_most)[0].scores.mean())
        margin = max(tried, key=lambda one: (round(tried[one], 6), one))
        stage, known = left_out(others, held_out, topic)
        rows.append((stage, *chained(stage, known, margin, at_most)))
    whole = _together([stage for stage, _, _ in rows])
    one = Played(
        *(np.concatenate([getattr(played, name) for _, played, _ in rows]) for name in ("scores", "spent", "handed"))
    )
    gain = gain_of(whole, one, BOOTSTRAP)
    at = np.arange(len(whole.first))
    return Row(
        float(whole.dataset.scores[at, whole.first].mean()),
        gain.score,
        gain.gain,
        gain.low,
        gain.high,
        mean(asks for _, _, asks in rows),
        float(one.spent.mean() / whole.spent[at, whole.first].mean()),
    )


def _left_out(seen: Dataset, dataset: Dataset, topic: int, curves: Models) -> tuple[Stage, Models]:
    """The topic's prompts of `dataset`, with overall means and what others score instead from other topics."""
    others = seen.rows(np.flatnonzero(seen.labels != topic))
    known = fitted_models(others, np.full(others.scores.shape, np.nan))
    models = {name: replace(model, instead=known[name].instead) for name, model in curves.items()}
    overall = others.scores.mean(axis=0)
    mine = dataset.rows(np.flatnonzero(dataset.labels == topic))
    return unrouted(mine, np.full(len(mine), int(overall.argmax())), overall), models


def _by_certainty(curves: Models, seen: Dataset) -> Models:
    """With each expert's mean P(right) in the place of its mean score, where another one is right and where wrong."""
    assert seen.said is not None
    means, nothing = seen.said.of(TOKENS), np.full(len(seen), np.nan)
    right = np.column_stack(
        [probabilities(curves[name].curve(TOKENS), means[:, at], nothing) for at, name in enumerate(seen.experts)]
    )

    def instead(first: int, other: int) -> Instead:
        shares = (right[:, first], 1.0 - right[:, first])
        return Instead(*(float(share @ right[:, other] / max(share.sum(), TINY)) for share in shares))

    return {
        name: replace(
            curves[name], instead={other: instead(at, to) for to, other in enumerate(seen.experts) if to != at}
        )
        for at, name in enumerate(seen.experts)
    }


def _together(stages: Sequence[Stage]) -> Stage:
    first = stages[0]
    names = ("allowed", "first", "penalty", "known", "lengths")
    unit = mean(stage.unit for stage in stages)
    dataset = first.dataset
    for stage in stages[1:]:
        dataset = joined(dataset, stage.dataset)
    parts = {name: np.concatenate([getattr(stage, name) for stage in stages]) for name in names}
    return replace(first, dataset=dataset, unit=unit, **parts)


def trained(held_out: Dataset, draw: int) -> Row:
    """The trained router with the handover that training found, shipped or not."""
    config = read_config(CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(config.model_copy(update={"seed": draw}), Path(folder) / "router", force=True, track=in_silence)
        router = Router.load(result.folder)
    found = decide(router, held_out, "quality", in_silence)
    manifest = router.artifact.manifest
    stage = Stage.of(held_out, found.expected, found.chosen, found.penalty, found.known, manifest.costs("quality"))
    handover = manifest.objectives["quality"].handover
    assert handover is not None
    one = by_rule(stage, manifest.certainty_models, handover.rule)
    gain = gain_of(stage, one, BOOTSTRAP)
    rows = np.arange(len(stage.first))
    cost = float(one.spent.mean() / stage.spent[rows, stage.first].mean())
    without = float(held_out.scores[rows, stage.first].mean())
    return Row(without, gain.score, gain.gain, gain.low, gain.high, 1.0 + gain.share, cost)


def table(train: Dataset, held_out: Dataset) -> str:
    """The result as Markdown."""
    kinds: dict[str, Measure] = {
        "three examples a topic": drafted,
        "generalist first, no router": generalist,
        "overall means, topic left out": without_topic,
    }
    cases = [
        (f"{name}, {'once' if at_most == 1 else f'up to {at_most} times'}", partial(measure, train, held_out, at_most))
        for name, measure in kinds.items()
        for at_most in (1, 2, 5)
    ]
    unscored = partial(without_topic, train, held_out, 1, unscored=UNSCORED)
    cases.append((f"the same, {UNSCORED} prompts of it asked of all, unscored, once", unscored))
    cases.append(("the trained router, by its own rule, once", partial(trained, held_out)))
    lines = [_line(name, [measure(draw) for draw in range(DRAWS)]) for name, measure in cases]
    return "\n".join(
        [
            "## Unsure answers handed over",
            "",
            f"`python -m benchmarks.handover`: {len(held_out)} held-out prompts of the demo, answers and"
            f" log-probabilities recorded from vLLM on the CPU; judged by {TOKENS} tokens; mean of {DRAWS} draws of"
            " examples and fitted prompts (least to most), and the interval of the draw that gains least.",
            *NOTES,
            "",
            "| first expert by | without | with handover | gain at equal cost, points | experts asked | cost |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _line(name: str, rows: Sequence[Row]) -> str:
    least = min(rows, key=lambda row: row.gain)
    gains = [row.gain for row in rows]
    return (
        f"| {name} | {mean(row.without for row in rows):.1%} | {_spread([row.with_it for row in rows])}"
        f" | {100 * mean(gains):+.1f} ({100 * min(gains):+.1f} to {100 * max(gains):+.1f}; least:"
        f" {100 * least.low:+.1f} to {100 * least.high:+.1f}) | {mean(row.asks for row in rows):.2f}"
        f" | {mean(row.cost for row in rows):.2f} x |"
    )


def _spread(shares: Sequence[float]) -> str:
    return f"{mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


if __name__ == "__main__":
    main()
