"""The artifact of a server with `router.routes`: fitted to the routes' examples at each start."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from coe_server.config.routes import RoutesFile, read_routes
from coe_server.errors import ConfigError
from coe_server.routing import artifact as artifacts
from coe_server.routing.artifact import Artifact
from coe_server.routing.embeddings import Embedder
from coe_server.routing.features import Floats, windowed
from coe_server.routing.frame import NEWEST, read_as
from coe_server.routing.local_embedders import local_kind
from coe_server.routing.manifest import FeatureSettings
from coe_server.routing.own_routes.draft import BUCKET_BITS, Draft, draft, texts_of


def drafted(
    path: Path, experts: Sequence[str] | None, embedder: Embedder | None, features: FeatureSettings | None
) -> Artifact:
    """The artifact of a routes file, with every check of a saved one. Raises ConfigError or ArtifactError.

    `experts`: those that are served; None if that is not known yet, because nodes tell it.
    """
    routes = read_routes(path)
    for name in routes.expert_names:
        if experts is not None and name not in experts:
            raise ConfigError(f"{path}: there is no expert {name!r}; the experts are {', '.join(experts)}")
    if routes.features is not None and embedder is None:
        raise ConfigError(f"{path}: features need {routes.features.model!r}; set router.embeddings")
    return as_saved(with_embeddings_of(routes, embedder, features))


def with_embeddings_of(routes: RoutesFile, embedder: Embedder | None, features: FeatureSettings | None) -> Draft:
    """The draft, with embeddings if there is an embedder. Replaces the dimensions of `features` by the real ones."""
    texts = texts_of(routes)
    if embedder is None or features is None or not texts:
        return draft(routes)
    rows = _embedded(texts, embedder)
    return draft(routes, rows, features.model_copy(update={"dimensions": rows.shape[1]}))


def embedded_by(model: str, base_url: str | None) -> FeatureSettings:
    """Features of n-grams and this model's embeddings. `dimensions` is a placeholder until a text has been embedded."""
    kind = "endpoint" if base_url else local_kind(model)
    found = {"kind": kind, "model": model, "dimensions": 1, "normalisation": NEWEST}
    return FeatureSettings(bucket_bits=BUCKET_BITS, **found)  # type: ignore[arg-type]


def as_saved(found: Draft) -> Artifact:
    """Write the artifact to a temporary folder and read it back, with all checks."""
    with tempfile.TemporaryDirectory(prefix="coe-routes.") as workplace:
        folder = Path(workplace) / "router"
        artifacts.save(found.artifact, found.held_out, None, folder)
        return artifacts.load(folder)


def _embedded(texts: Sequence[str], embedder: Embedder) -> Floats:
    async def ask() -> Floats:
        try:
            return await embedder.embed([read_as(windowed(text), NEWEST) for text in texts])
        finally:
            await embedder.close()

    with ThreadPoolExecutor(1) as thread:  # a reload already runs in an event loop
        return thread.submit(lambda: asyncio.run(ask())).result()
