"""The artifact of a server that is configured with `router.routes`: fitted on the routes' examples at each start."""

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
from coe_server.routing.draft import BUCKET_BITS, Draft, draft, texts_of
from coe_server.routing.embeddings import Embedder
from coe_server.routing.features import Floats, windowed
from coe_server.routing.manifest import FeatureSettings


def drafted(
    path: Path, experts: Sequence[str], embedder: Embedder | None, features: FeatureSettings | None
) -> Artifact:
    """The artifact, read back as it would be from a folder. Raises ConfigError or ArtifactError with one sentence."""
    routes = read_routes(path)
    for name in routes.expert_names:
        if name not in experts:
            raise ConfigError(f"{path}: there is no expert {name!r}; the experts are {', '.join(experts)}")
    if routes.features is not None and embedder is None:
        raise ConfigError(f"{path}: features name {routes.features.model!r}; say in router.embeddings what embeds here")
    return as_saved(with_embeddings_of(routes, embedder, features))


def with_embeddings_of(routes: RoutesFile, embedder: Embedder | None, features: FeatureSettings | None) -> Draft:
    """The draft, on embeddings too where there is something that embeds. `features` says all but the dimensions."""
    texts = texts_of(routes)
    if embedder is None or features is None or not texts:
        return draft(routes)
    rows = _embedded(texts, embedder)
    return draft(routes, rows, features.model_copy(update={"dimensions": rows.shape[1]}))


def embedded_by(model: str, base_url: str | None) -> FeatureSettings:
    """Features of n-grams and embeddings by this model; their dimensions are known once it has embedded something."""
    kind = "endpoint" if base_url else "sentence-transformers"
    return FeatureSettings(kind=kind, bucket_bits=BUCKET_BITS, model=model, dimensions=1)  # type: ignore[arg-type]


def as_saved(found: Draft) -> Artifact:
    """The artifact written to a temporary folder and read back, with every check that a folder gets."""
    with tempfile.TemporaryDirectory(prefix="coe-routes.") as workplace:
        folder = Path(workplace) / "router"
        artifacts.save(found.artifact, found.held_out, None, folder)
        return artifacts.load(folder)


def _embedded(texts: Sequence[str], embedder: Embedder) -> Floats:
    async def ask() -> Floats:
        try:
            return await embedder.embed([windowed(text) for text in texts])
        finally:
            await embedder.close()

    with ThreadPoolExecutor(1) as thread:  # a reload runs within an event loop already
        return thread.submit(lambda: asyncio.run(ask())).result()
