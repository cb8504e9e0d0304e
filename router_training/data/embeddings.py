"""Embeds every text of a data set once and caches it on disk by content hash, so that a run can be interrupted.

The cache is safetensors: nothing in it can execute code.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from coe_server.errors import DatasetError, EmbeddingNotFinite
from coe_server.routing.embedders import Endpoint, EndpointEmbedder
from coe_server.routing.embeddings import EmbeddedFeatures, Embedder, StaticEmbeddings, finite, read_static_embeddings
from coe_server.routing.features import Floats, Turn, Vectoriser, windowed
from coe_server.routing.frame import NEWEST, Normalisation, read_as
from coe_server.routing.local_embedders import LOCAL
from coe_server.routing.manifest import FeatureSettings as FeatureEntry
from router_training import Track
from router_training.config import FeatureSettings
from router_training.data.dataset import Dataset, named_prompts

TEXTS_PER_STEP = 256  # embedded between two writes; an interruption loses at most these

Prepare = Callable[[Dataset], Dataset]  # adds the embeddings needed for routing


def nothing_to_embed(dataset: Dataset) -> Dataset:
    """The `Prepare` of a router without embeddings."""
    return dataset


@dataclass(frozen=True, slots=True)
class StaticEmbedder:
    """A table of static embeddings as an `Embedder`."""

    table: StaticEmbeddings

    async def embed(self, texts: Sequence[str]) -> Floats:
        return self.table.embed(texts)

    async def close(self) -> None:
        """Do nothing: a table needs no closing."""


def embedder_of(settings: FeatureSettings) -> Embedder:
    """The configured embedder; loads and calls nothing yet. Raises ConfigError."""
    assert settings.model is not None, "the configuration refuses embeddings without a model"
    if settings.kind == "static":
        return StaticEmbedder(read_static_embeddings(Path(settings.model)))
    if settings.kind in LOCAL:
        return LOCAL[settings.kind](settings.model)
    assert settings.base_url is not None, "the configuration refuses an endpoint without a base_url"
    endpoint = Endpoint(
        base_url=settings.base_url,
        model=settings.model,
        api_key=settings.api_key,
        timeout_seconds=settings.timeout_seconds,
        batch_size=settings.batch_size,
        proxy=settings.proxy,
    )
    return EndpointEmbedder(endpoint)


def with_embeddings(
    dataset: Dataset, settings: FeatureSettings, track: Track, normalisation: Normalisation = NEWEST
) -> Dataset:
    """The data set with an embedding on every turn; unchanged if the features have none.

    `normalisation`: how texts are read, in training always the newest.

    Raises ConfigError, EmbeddingUnavailable, or DatasetError for a damaged cache or non-finite embeddings,
    naming the prompts.
    """
    if settings.kind == "hashed-ngrams":
        return dataset
    read = {turn.text: read_as(windowed(turn.text), normalisation) for turn in _turns(dataset)}
    texts = {text: _digest(text) for text in read.values()}
    cache = EmbeddingCache(settings.cache / _folder_name(settings))
    known = cache.read()
    missing = [text for text, digest in texts.items() if digest not in known]
    try:
        known |= _embedded(missing, embedder_of(settings), cache, track) if missing else {}
    except EmbeddingNotFinite as error:
        wrong = {missing[place] for place in error.places}
        raise DatasetError(f"{error}; {_prompts_with(wrong, read, dataset)}") from error
    conversations = tuple(
        replace(
            conversation,
            turns=tuple(replace(turn, embedding=known[texts[read[turn.text]]]) for turn in conversation.turns),
        )
        for conversation in dataset.conversations
    )
    return replace(dataset, conversations=conversations)


def served(features: Vectoriser, settings: FeatureSettings) -> Vectoriser:
    """The features with the table of static embeddings, which is saved in the artifact."""
    if settings.kind != "static":
        return features
    assert isinstance(features, EmbeddedFeatures), "static embeddings are embeddings"
    return replace(features, table=read_static_embeddings(Path(str(settings.model))))


def feature_entry(features: Vectoriser, settings: FeatureSettings) -> FeatureEntry:
    """The manifest's entry for the features; of a folder's path it keeps the name only."""
    return FeatureEntry(
        kind=settings.kind,
        bucket_bits=settings.bucket_bits,
        ngrams=settings.ngrams,
        model=Path(settings.model).name if settings.kind == "static" and settings.model else settings.model,
        dimensions=features.dimensions if isinstance(features, EmbeddedFeatures) else 0,
        normalisation=NEWEST,
    )


@dataclass(frozen=True, slots=True)
class EmbeddingCache:
    """Files in `folder`, each with texts' digests [n, 32] and their vectors [n, dimensions]; never changed."""

    folder: Path

    def read(self) -> dict[bytes, Floats]:
        """Every vector, by the digest of its text. Raises DatasetError naming a damaged file."""
        found: dict[bytes, Floats] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                tensors = load_file(path)
                digests, vectors = tensors["digests"], tensors["vectors"]
                if not np.isfinite(vectors).all():
                    raise ValueError("a vector has NaN or an infinite value")
                found |= {digest.tobytes(): vector for digest, vector in zip(digests, vectors, strict=True)}
            except (SafetensorError, KeyError, ValueError) as error:
                raise DatasetError(
                    f"{path} is damaged; delete it and its texts are embedded again ({error})"
                ) from error
        return found

    def write(self, vectors: dict[bytes, Floats]) -> None:
        """Write one more file atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        digests = np.frombuffer(b"".join(vectors), dtype=np.uint8).reshape(len(vectors), -1)
        content = save({"digests": digests, "vectors": np.stack(list(vectors.values()))})
        name = hashlib.sha256(digests.tobytes()).hexdigest()[:16]
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".part.") as workplace:
            fresh = Path(workplace) / "new"
            fresh.write_bytes(content)
            fresh.rename(self.folder / f"{name}.safetensors")


def _embedded(texts: Sequence[str], embedder: Embedder, cache: EmbeddingCache, track: Track) -> dict[bytes, Floats]:
    found: dict[bytes, Floats] = {}
    steps = [texts[at : at + TEXTS_PER_STEP] for at in range(0, len(texts), TEXTS_PER_STEP)]
    with asyncio.Runner() as runner:
        try:
            for number, step in enumerate(track(steps, f"embedding {len(texts)} texts")):
                rows = _rows_of(step, number * TEXTS_PER_STEP, embedder, runner)
                fresh = {_digest(text): row for text, row in zip(step, rows, strict=True)}
                cache.write(fresh)
                found |= fresh
        finally:
            runner.run(embedder.close())
    return found


def _rows_of(step: Sequence[str], first: int, embedder: Embedder, runner: asyncio.Runner) -> Floats:
    """The embeddings of these texts; `first` is the position of the first among all."""
    try:
        return finite(runner.run(embedder.embed(step)), "the table of static embeddings")
    except EmbeddingNotFinite as error:
        raise EmbeddingNotFinite(str(error), [first + place for place in error.places]) from error


def _prompts_with(texts: Collection[str], read: Mapping[str, str], dataset: Dataset) -> str:
    """The prompts of which one of these texts was read, for a message."""
    told = zip(dataset.prompt_ids, dataset.conversations, strict=True)
    return named_prompts([name for name, talk in told if any(read[turn.text] in texts for turn in talk.turns)])


def _turns(dataset: Dataset) -> Iterable[Turn]:
    return (turn for conversation in dataset.conversations for turn in conversation.turns)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def _folder_name(settings: FeatureSettings) -> str:
    """One folder for each source of vectors: a readable name and a hash that makes it unique."""
    source = f"{settings.kind} {settings.base_url or ''} {settings.model}"
    readable = re.sub(r"[^a-z0-9]+", "-", Path(str(settings.model)).name.lower()).strip("-")[:40]
    return f"{readable or 'model'}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
