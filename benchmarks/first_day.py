"""A router from ten examples of each kind: how often it is right, and what it does with kinds that it does not know.

Run with `python -m benchmarks.first_day --data FILE`; FILE is Parquet with the columns `prompt` and `category`.
Examples and test prompts of a draw are apart. `--write` keeps the table.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks.document import document
from coe_server.build.drafts import as_saved
from coe_server.config.routes import DEFAULT_ROUTE, RoutesFile
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.draft import draft
from coe_server.routing.router import Router

DEFAULT_FILE = Path("category_corpus.parquet")
EXAMPLES, TESTED, DRAWS, STRANGERS = 10, 60, 5, 5
LEAST_PROMPTS = 90
NO_KIND = frozenset({"other_language"})  # many languages under one name
GOAL = 0.60


@dataclass(frozen=True, slots=True)
class Found:
    """Shares of the test prompts: `right`, and sent to the default although (`lost`) their kind is known."""

    right: float
    lost: float
    strangers: float | None = None


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--data", type=Path, default=DEFAULT_FILE)
    asked.add_argument("--write", action="store_true")
    options = asked.parse_args()
    if not options.data.is_file():
        print(f"skipped: {options.data} is not here; --data names a Parquet file with the columns prompt and category")
        return
    prompts = read(options.data)
    kinds = sorted(prompts)
    known, strange = [], []
    for draw in range(DRAWS):
        chance = random.Random(draw)
        shuffled = {kind: chance.sample(prompts[kind], EXAMPLES + TESTED) for kind in kinds}
        left_out = chance.sample(kinds, STRANGERS)
        known.append(measured(shuffled, ()))
        strange.append(measured(shuffled, left_out))
    text = table(len(kinds), known, strange)
    print(text)
    if options.write:
        document("first_day", text)


def read(path: Path) -> dict[str, list[str]]:
    """Prompts by kind, of the kinds that have enough."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - the extra `train`, and not needed to say that the file is missing

    rows = pq.read_table(path, columns=["prompt", "category"])
    found: dict[str, list[str]] = defaultdict(list)
    for prompt, kind in zip(rows.column("prompt").to_pylist(), rows.column("category").to_pylist(), strict=True):
        found[kind].append(prompt)
    return {kind: texts for kind, texts in found.items() if len(texts) >= LEAST_PROMPTS and kind not in NO_KIND}


def measured(shuffled: Mapping[str, Sequence[str]], left_out: Collection[str]) -> Found:
    """One draw, with the kinds `left_out` unknown to the router."""
    routes = {
        kind: {"expert": f"e-{kind}", "examples": [text[:20_000] for text in texts[:EXAMPLES]]}
        for kind, texts in shuffled.items()
        if kind not in left_out
    }
    file = RoutesFile.model_validate({"routes": routes, "default": "generalist"})
    router = Router(as_saved(draft(file)))
    away = dict.fromkeys(router.expert_names, Availability("disk", 1.0))

    def sent(kind: str) -> list[str | None]:
        tested = (Conversation.of_prompt(text) for text in shuffled[kind][EXAMPLES:])
        return [router.route(one, RouteOptions(), away).category for one in tested]

    by_kind = {kind: sent(kind) for kind in shuffled}
    return Found(
        mean(went == kind for kind in routes for went in by_kind[kind]),
        mean(went == DEFAULT_ROUTE for kind in routes for went in by_kind[kind]),
        mean(went == DEFAULT_ROUTE for kind in left_out for went in by_kind[kind]) if left_out else None,
    )


def table(kinds: int, known: Sequence[Found], strange: Sequence[Found]) -> str:
    """The result as Markdown."""
    return "\n".join(
        [
            "## A router from ten examples of each kind",
            "",
            f"`python -m benchmarks.first_day`, n-grams; {EXAMPLES} examples of each kind, {TESTED} other prompts each"
            f" tested, mean of {DRAWS} draws (least to most). The goal: {GOAL:.0%} right of {kinds} kinds.",
            "",
            "| router | right | known kinds to the default | strangers to the default |",
            "|---|---|---|---|",
            f"| {kinds} kinds | {_spread([one.right for one in known])} | {_spread([one.lost for one in known])} | - |",
            f"| {kinds - STRANGERS} kinds, {STRANGERS} strangers | {_spread([one.right for one in strange])}"
            f" | {_spread([one.lost for one in strange])} | {_spread([one.strangers or 0.0 for one in strange])} |",
        ]
    )


def _spread(shares: Sequence[float]) -> str:
    return f"{mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


if __name__ == "__main__":
    main()
