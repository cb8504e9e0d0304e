"""Random data sets like those of users. Sizes and kinds are drawn, not rows, so that a failing example is short."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

EXPERTS = ("a", "b.2", "gen", "other")
NAMES = [
    *("code", "math", "several", "0", "all categories", "auto", " ", "été 日本", "שלום", "العربية", "हिन्दी", "👩‍👩‍👧"),
    *("$x_{", "$\\frac{1}{2}$", "[/red]", "[bold]b", ":warning:", "<script>&'\"", "a\nb", "a\rb", "\0", "\x1b[31m"),
    *("\u202eabc", "half \ud83d", "other half \ude00", "\ufeff", "\x85\u2028", "n" * 200, "{0}%s\\"),
]
STEMS = ("sort", "sum", "law", "dog", "übung", "日本", "tree", "paint", "river", "stone")
WORDS = [f"{stem}{ending}" for stem in STEMS for ending in ("", "ing", "ed", "s")]
TEXTS = [
    "",
    " \n",
    "?",
    "\0",
    "a\rb",
    "half \ud83d pair",
    "\ud83d\ude00",
    "\u202eright to left",
    "x" * 70_000,
    "[/b] $x$",
]


@dataclass(frozen=True, slots=True)
class Drawn:
    """`scores` has the kind of scores of each expert, `silences` how many of its outcomes are missing."""

    seed: int
    prompts: int
    categories: Sequence[str]
    unlabelled: float
    singletons: int
    groups: Sequence[str]
    texts: str
    scores: Sequence[str]
    silences: Sequence[str]
    weights: str
    parquet: bool
    sizes: Sequence[float]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def experts(self) -> tuple[str, ...]:
        return EXPERTS[: len(self.scores)]


SCORES = ["right", "wrong", "equal", "coin", "real", "own", "own or right", "almost right", "same as first"]
SILENCES = ["none", "none", "none", "none", "few", "many", "nulls", "nulls", "one category", "all"]
SIZES = [1.0, 1.0, 7.0, 7.000000000000001, 70.0, 0.0007, 1000.0]
TEXT_KINDS = ["telling", "telling", "telling", "telling", "noise", "noise", "odd", "odd", "talks", "same", "copies"]


@st.composite
def settings_of_a_run(draw: st.DrawFn, sizes: Sequence[float]) -> dict[str, Any]:
    """The settings that select other code."""
    between = st.floats(min(sizes), max(sizes))
    budgets = st.sampled_from([{}, {"quality": {}}]) | st.builds(
        lambda budget: {"quality": {}, "cheap": {"active_params_b": budget}}, between
    )
    classifier = st.fixed_dictionaries(
        {"folds": st.integers(2, 5)},
        optional={
            "kind": st.sampled_from(["logistic", "svm", "knn", "mlp", "auto"]),
            "calibration": st.sampled_from(["temperature", "sigmoid", "isotonic"]),
            "self_training_confidence": st.sampled_from([0.0, 0.5, 1.0]),
            "min_confidence": st.sampled_from([0.0, 0.6, 1.0]),
            "max_entropy": st.sampled_from([0.0, 0.9, "auto"]),
        },
    )
    mapping = st.fixed_dictionaries(
        {},
        optional={
            "mode": st.sampled_from(["soft", "hard"]),
            "scores": st.sampled_from(["mean", "lower_bound"]),
            "shrinkage_prompts": st.sampled_from([0.0, 5.0, 1e6]),
            "max_experts": st.integers(1, 3),
            "hosted_params_b": st.sampled_from([sum(sizes), max(sizes), min(sizes)]),
        },
    )
    data = st.fixed_dictionaries(
        {},
        optional={
            "held_out_share": st.sampled_from([0.1, 0.5]),
            "split_by": st.sampled_from(["prompt", "group"]),
            "categories": st.sampled_from(["auto", 2, 3]),
        },
    )
    chosen = {"data": draw(data), "classifier": draw(classifier), "mapping": draw(mapping)}
    return {**chosen, "objectives": draw(budgets), "report": {"texts": draw(st.booleans())}}


@st.composite
def data_sets(draw: st.DrawFn) -> Drawn:
    experts = draw(st.sampled_from([1, 2, 2, 2, 3, 4]))
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=experts, max_size=experts))
    return Drawn(
        seed=draw(st.integers(0, 10_000)),
        prompts=draw(st.sampled_from([3, 8, 15, *range(20, 60), 120, 120])),
        categories=draw(st.lists(st.sampled_from(NAMES), max_size=4, unique=True)),
        unlabelled=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        singletons=draw(st.sampled_from([0, 0, 1, 3])),
        groups=draw(st.lists(st.sampled_from(["", *NAMES]), max_size=5, unique=True)),
        texts=draw(st.sampled_from(TEXT_KINDS)),
        scores=draw(st.lists(st.sampled_from(SCORES), min_size=experts, max_size=experts) | st.just(["own"] * experts)),
        silences=draw(st.lists(st.sampled_from(SILENCES), min_size=experts, max_size=experts)),
        weights=draw(st.sampled_from(["none", "none", "drawn", "zeros", "one heavy"])),
        parquet=draw(st.booleans()),
        sizes=sizes,
        settings=draw(settings_of_a_run(sizes)),
    )


def write(drawn: Drawn, folder: Path) -> Path:
    """Write prompts, outcomes and their config; returns the config's path."""
    chance = random.Random(drawn.seed)
    rows = [_prompt(drawn, number, chance) for number in range(drawn.prompts)]
    recorded = [_outcome(drawn, row, at, chance) for row in rows for at in range(len(drawn.scores))]
    ending = "parquet" if drawn.parquet else "jsonl"
    write_table(folder / f"prompts.{ending}", rows)
    write_table(folder / f"outcomes.{ending}", [row for row in recorded if row is not None])
    experts = [{"name": n, "active_params_b": size} for n, size in zip(drawn.experts, drawn.sizes, strict=True)]
    config: dict[str, Any] = {
        **{key: value for key, value in drawn.settings.items() if value},
        "data": {"prompts": [f"prompts.{ending}"], "outcomes": [f"outcomes.{ending}"], **drawn.settings["data"]},
        "experts": experts,
        "features": {"bucket_bits": 12},
        "shipping": {"resamples": 100},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSON Lines, or Parquet, which cannot hold lone surrogates."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".jsonl":
        path.write_text(text, encoding="utf-8")
        return
    whole = json.dumps(rows, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    pq.write_table(pa.Table.from_pylist(json.loads(whole)), path)


def _prompt(drawn: Drawn, number: int, chance: random.Random) -> dict[str, Any]:
    category = chance.choice(drawn.categories) if drawn.categories else None
    if number < drawn.singletons:
        category = f"alone {number}"
    row = {
        "prompt_id": number,
        "category": None if chance.random() < drawn.unlabelled else category,
        "group": chance.choice(drawn.groups) if drawn.groups else None,
        "weight": _weight(drawn.weights, number, chance),
    }
    text = _text(drawn, number, category, chance)
    if drawn.texts != "talks":
        return {**row, "prompt": text}
    said = [{"role": role, "content": f"{text} {role}"} for role in ("system", "user", "assistant", "user")]
    return {**row, "messages": said[: chance.randint(1, 4)]}


def _text(drawn: Drawn, number: int, category: str | None, chance: random.Random) -> str:
    if drawn.texts == "same":
        return "the same words every time"
    if drawn.texts == "odd":
        return chance.choice(TEXTS) + (f" {number}" if chance.random() < 0.5 else "")
    if drawn.texts == "copies":
        return f"the same question {number % 3} asked again"
    words = WORDS if drawn.texts == "noise" else random.Random(repr(category)).sample(WORDS, 20)
    return " ".join(chance.choices(words, k=7)) + f" {number}"


def _weight(kind: str, number: int, chance: random.Random) -> float | None:
    known = {"none": None, "drawn": chance.random(), "zeros": float(number % 2), "one heavy": 1e9 if number == 3 else 1}
    return known[kind]


def _outcome(drawn: Drawn, row: dict[str, Any], at: int, chance: random.Random) -> dict[str, Any] | None:
    silence, first = drawn.silences[at], row["category"] == (drawn.categories or [None])[0]
    missing = {"few": 0.1, "many": 0.7, "nulls": 0.3, "all": 1.0, "one category": float(first)}.get(silence, 0.0)
    score: float | None = _score(drawn.scores[at], row["category"], at, drawn, chance)
    if chance.random() < missing:
        if silence != "nulls":
            return None
        score = chance.choice([None, float("nan")])
    return {"prompt_id": row["prompt_id"], "expert": drawn.experts[at], "score": score}


def _score(kind: str, category: str | None, at: int, drawn: Drawn, chance: random.Random) -> float:
    mine = bool(drawn.categories) and category == drawn.categories[at % len(drawn.categories)]
    if kind == "same as first" and at > 0:
        return _score(drawn.scores[0], category, 0, drawn, random.Random(drawn.seed))
    known = {
        "right": 1.0,
        "wrong": 0.0,
        "equal": 0.5,
        "coin": float(chance.random() < 0.6),
        "real": chance.random(),
        "own": float(mine),
        "own or right": 1.0 if mine else float(chance.random() < 0.3),
        "almost right": 1.0 - 1e-12 * chance.random(),
    }
    return known.get(kind, 1.0)
