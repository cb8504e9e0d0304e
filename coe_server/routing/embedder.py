"""Texts -> embeddings by a model or a network: done at the edge, before `route`, which never waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from coe_server.errors import EmbeddingNotFinite, EmbeddingUnavailable
from coe_server.routing.conversation import Conversation
from coe_server.routing.features import Floats, windowed


class Embedder(Protocol):
    """Whoever makes one must close it."""

    async def embed(self, texts: Sequence[str]) -> Floats:
        """[n, dimensions], each row of length 1. Raises EmbeddingUnavailable."""

    async def close(self) -> None:
        """Gives connections and threads back; it can be used again."""


@dataclass(frozen=True, slots=True)
class OfLength:
    """An embedder whose vectors must have the `dimensions` that the router was trained with."""

    embedder: Embedder
    dimensions: int

    async def embed(self, texts: Sequence[str]) -> Floats:
        rows = await self.embedder.embed(texts)
        if rows.shape[1] != self.dimensions:
            raise EmbeddingUnavailable(
                f"embeddings have {rows.shape[1]} dimensions, the router was trained with {self.dimensions}:"
                " router.embeddings.model is another model"
            )
        return rows

    async def close(self) -> None:
        await self.embedder.close()


def finite(rows: Floats, source: str) -> Floats:
    """The rows [n, dimensions] as they are. Raises EmbeddingNotFinite naming the first text whose row has NaN."""
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(wrong) == 0:
        return rows
    what = "NaN" if np.isnan(rows[wrong[0]]).any() else "an infinite value"
    others = f" and of {len(wrong) - 1} more" if len(wrong) > 1 else ""
    raise EmbeddingNotFinite(
        f"{source} answers {len(rows)} texts with embeddings of shape {rows.shape} that have {what}:"
        f" that of text {wrong[0] + 1}{others}",
        wrong.tolist(),
    )


async def with_embeddings(conversation: Conversation, embedder: Embedder) -> Conversation:
    """The conversation with an embedding on each of its turns."""
    rows = await embedder.embed([windowed(turn.text) for turn in conversation.turns])
    turns = tuple(replace(turn, embedding=row) for turn, row in zip(conversation.turns, rows, strict=True))
    return replace(conversation, turns=turns)
