"""`coe-train ask`: the prompts most worth a label, then those most worth recorded outcomes.

Worth a label: the router hesitates between two categories, or the prompt is like none of them. Worth outcomes: its
category has much traffic and few outcomes. Near-duplicates of a chosen prompt are not asked for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from coe_server.errors import ConfigError, DatasetError
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.features import normalised, windowed, word_hashes
from coe_server.routing.frame import read_as
from coe_server.routing.local_embedders import LOCAL
from coe_server.routing.probes import shown
from coe_server.routing.router import Router
from coe_server.system.visible import visible
from router_training.data.dataset import read_prompts
from router_training.data.near_duplicates import LEAST_RESEMBLANCE, resemblance
from router_training.data.rows import read_rows, text_in

MOST_READ = 20_000  # prompts, the last ones of the files


@dataclass(frozen=True, slots=True)
class Seen:
    """A prompt, its label if it has one, the probabilities of its categories, and whether the gate knows it."""

    prompt_id: str
    text: str
    label: str | None
    probabilities: Mapping[str, float]
    inside: bool

    @property
    def top(self) -> tuple[str, str]:
        """The two likeliest categories."""
        first, second = sorted(self.probabilities, key=lambda name: -self.probabilities[name])[:2]
        return first, second

    @property
    def margin(self) -> float:
        """By how much the likeliest category leads; 0 outside the gate."""
        first, second = self.top
        return self.probabilities[first] - self.probabilities[second] if self.inside else 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to label and what to collect, most worth first."""

    label: tuple[Seen, ...]
    collect: tuple[Seen, ...]


def ask(artifact: Path, prompts: Sequence[Path], outcomes: Sequence[Path], count: int) -> Wanted:
    """The `count` prompts most worth labelling, and `count` others most worth collecting outcomes for.

    Raises ConfigError, ArtifactError or DatasetError with one sentence.
    """
    router = Router.load(artifact)
    manifest = router.artifact.manifest
    if len(manifest.categories) < 2:
        raise ConfigError(f"{artifact} has one category: there is nothing to tell apart")
    seen = _seen(router, prompts)
    recorded = {text_in(path, at, row, "prompt_id") for path in outcomes for at, row in read_rows(path, ("prompt_id",))}
    label = worth_labelling(seen, count)
    chosen = {one.prompt_id for one in label}
    known = {name: min(entry.prompts for entry in manifest.score[name].values()) for name in manifest.categories}
    rest = [one for one in seen if one.prompt_id not in recorded | chosen]
    return Wanted(tuple(label), tuple(worth_collecting(rest, known, count)))


def worth_labelling(seen: Sequence[Seen], count: int) -> list[Seen]:
    """Prompts without a label, the least certain first."""
    unlabelled = sorted((one for one in seen if one.label is None), key=lambda one: (one.margin, one.prompt_id))
    return different(unlabelled, count)


def worth_collecting(seen: Sequence[Seen], known: Mapping[str, int], count: int) -> list[Seen]:
    """Prompts of the categories with the most traffic for each `known` outcome, the surest of a category first."""
    of_category: dict[str, list[Seen]] = {}
    for one in seen:
        of_category.setdefault(one.label or one.top[0], []).append(one)
    sure = {
        name: different(sorted(rows, key=lambda one: (-one.margin, one.prompt_id)), count)
        for name, rows in of_category.items()
    }
    taken: Counter[str] = Counter()
    found: list[Seen] = []
    while len(found) < count and any(len(rows) > taken[name] for name, rows in sure.items()):
        worth = {
            name: len(of_category[name]) / sqrt(known.get(name, 0) + taken[name] + 1.0)
            for name, rows in sure.items()
            if len(rows) > taken[name]
        }
        best = max(worth, key=lambda name: (worth[name], name))
        found.append(sure[best][taken[best]])
        taken[best] += 1
    return found


def different(ordered: Sequence[Seen], count: int) -> list[Seen]:
    """The first `count` of them that are no near-duplicate of an earlier one."""
    found: list[Seen] = []
    words: list[npt.NDArray[np.uint32]] = []
    for one in ordered:
        if len(found) == count:
            break
        own = np.unique(word_hashes(normalised(one.text)))
        if not any(resemblance(own, other) >= LEAST_RESEMBLANCE for other in words):
            found.append(one)
            words.append(own)
    return found


def _seen(router: Router, prompts: Sequence[Path]) -> list[Seen]:
    """The prompts of the files, routed."""
    read = read_prompts(prompts)
    if not read:
        raise DatasetError(f"{', '.join(map(str, prompts))}: no rows")
    last = read[-MOST_READ:]
    conversations = _embedded(router, [one.conversation for one in last])
    away = dict.fromkeys(router.expert_names, Availability("disk", 1.0))
    found = []
    for one, conversation in zip(last, conversations, strict=True):
        text = conversation.turns[-1].text
        if text.strip():
            decision = router.route(conversation, RouteOptions(), away)
            inside = decision.gate.inside is not False
            found.append(Seen(one.prompt_id, text, one.category, decision.probabilities, inside))
    return found


def _embedded(router: Router, conversations: Sequence[Conversation]) -> Sequence[Conversation]:
    """The conversations with the embeddings that the router needs. Raises ConfigError if an endpoint makes them."""
    features = router.artifact.manifest.features
    if not features.embedded_before_routing:
        return conversations
    if features.kind not in LOCAL or features.model is None:
        raise ConfigError("prompts cannot be routed: an endpoint makes this artifact's embeddings")
    embedder = LOCAL[features.kind](features.model)
    read = features.normalisation
    texts = [read_as(windowed(turn.text), read) for one in conversations for turn in one.turns]
    rows = iter(asyncio.run(embedder.embed(texts)))
    return [
        replace(one, turns=tuple(replace(turn, embedding=next(rows)) for turn in one.turns)) for one in conversations
    ]


def show_wanted(wanted: Wanted, console: Console) -> None:
    """Print both lists; a sentence in place of an empty one."""
    _show("worth a label", "which of these?", [(one, _doubt(one)) for one in wanted.label], console)
    if not wanted.label:
        console.print("Nothing to label: every prompt has a category.")
    _show(
        "worth outcomes of every expert",
        "category",
        [(one, one.label or one.top[0]) for one in wanted.collect],
        console,
    )
    if not wanted.collect:
        console.print("Nothing to collect: every prompt has outcomes or is in the list above.")


def _show(title: str, column: str, rows: Sequence[tuple[Seen, str]], console: Console) -> None:
    """A table in which ids stand whole, to be copied; nothing without rows."""
    table = Table(title=title)
    table.add_column("prompt_id", overflow="fold")
    table.add_column("prompt")
    table.add_column(column)
    for one, told in rows:
        table.add_row(visible(one.prompt_id), shown(one.text), visible(told))
    if rows:
        console.print(table)


def _doubt(one: Seen) -> str:
    first, second = one.top
    said = f"{first} {one.probabilities[first]:.2f}, {second} {one.probabilities[second]:.2f}"
    return said if one.inside else f"like none; {said}"
