"""Embeddings by a sentence-transformers model in this process. The package is imported only where it is used."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np

from coe_server.errors import ConfigError, EmbeddingUnavailable
from coe_server.routing.embedder import finite
from coe_server.routing.features import Floats, of_length_one, well_formed

PACKAGE = "sentence_transformers"


class SentenceEmbedder:
    """An `Embedder` with one thread of its own: the model computes, the event loop goes on."""

    def __init__(self, model: str) -> None:
        """`model` is a folder or a name that sentence-transformers knows; it is loaded when it is first used."""
        if find_spec(PACKAGE) is None:
            raise ConfigError(f"embeddings by {model!r} need a package: pip install sentence-transformers")
        self._name = model
        self._model: Any = None
        self._thread = ThreadPoolExecutor(1, "embedder")

    async def embed(self, texts: Sequence[str]) -> Floats:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, list(texts))

    async def close(self) -> None:
        self._model = None

    def _embed(self, texts: list[str]) -> Floats:
        try:
            if self._model is None:
                from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - it brings torch

                self._model = SentenceTransformer(self._name, trust_remote_code=False)
            written = [well_formed(text) for text in texts]
            rows = self._model.encode(written, convert_to_numpy=True, show_progress_bar=False)
        except Exception as error:
            raise EmbeddingUnavailable(f"the embedding model {self._name!r} failed: {error}") from error
        return of_length_one(finite(np.asarray(rows), f"the embedding model {self._name!r}"))
