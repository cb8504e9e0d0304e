"""Embeddings as features: from a static table in this process, or computed before `route`, which does no I/O.

A static table has one vector per token; a text's embedding is their mean. Tables are folders in model2vec's format
(`model.safetensors`, `tokenizer.json`); no code in them is executed. `tokenizers` is imported on use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from coe_server.errors import ConfigError, EmbeddingNotFinite, EmbeddingUnavailable
from coe_server.routing.conversation import Conversation
from coe_server.routing.features import Features, Floats, SparseVector, Turn, of_length_one, windowed
from coe_server.routing.frame import Normalisation, read_as
from coe_server.routing.tokens import UnsafeRule, require_safe
from coe_server.system.visible import brief

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class EmbeddedFeatures:
    """The columns of `ngrams` (None: no n-grams), then the `dimensions` of an embedding of length 1.

    With `table`, `vector` computes the embedding; otherwise the turns carry theirs. A prompt without an embedding has
    only its n-grams, and the gate treats it as unlike the training data.
    """

    ngrams: Features | None
    dimensions: int
    table: StaticEmbeddings | None = None
    normalisation: Normalisation = "plain"

    @property
    def columns(self) -> int:
        return self.first_dense + self.dimensions

    @property
    def first_dense(self) -> int:
        """The first column of the embedding."""
        return self.ngrams.columns if self.ngrams is not None else 0

    def vector(self, turns: Sequence[Turn]) -> SparseVector:
        dense = self._embedding(turns)
        places = np.arange(len(dense), dtype=np.int64) + self.first_dense
        if self.ngrams is None:
            return SparseVector(places, dense)
        sparse = self.ngrams.vector(turns)
        return SparseVector(np.concatenate((sparse.columns, places)), np.concatenate((sparse.weights, dense)))

    def _embedding(self, turns: Sequence[Turn]) -> Floats:
        embeddings = [turn.embedding for turn in turns]
        if self.table is not None:
            missing = [read_as(turn.text, self.normalisation) for turn in turns if turn.embedding is None]
            computed = iter(self.table.embed(missing) if missing else ())
            embeddings = [next(computed) if found is None else found for found in embeddings]
        return mean_embedding(embeddings, [turn.weight for turn in turns])


def mean_embedding(embeddings: Sequence[Floats | None], weights: Sequence[float]) -> Floats:
    """The weighted mean, scaled to length 1; empty if an embedding is missing."""
    known = [one for one in embeddings if one is not None]
    if len(known) < len(embeddings) or not known:
        return np.empty(0, dtype=np.float32)
    (row,) = of_length_one(np.average(np.stack(known), axis=0, weights=weights)[np.newaxis])
    return np.asarray(row)


TABLE, TOKENIZER = "model.safetensors", "tokenizer.json"
LARGEST_TABLE_BYTES, LARGEST_TOKENIZER_BYTES = 1 << 30, 64 << 20  # as in an artifact
_TRIED = ["", "a word", "\U0001f600 中 é \ufdfa \0\x7f", bytes(range(33, 127)).decode() * 8]


@dataclass(frozen=True, slots=True)
class StaticEmbeddings:
    """`vectors` [tokens, dimensions], multiplied by the token weights; `vocabulary`: the text of a tokenizer.json."""

    vectors: Floats
    vocabulary: str
    tokenizer: Tokenizer

    @classmethod
    def of(cls, vectors: Floats, vocabulary: str) -> StaticEmbeddings:
        """Check and load. Raises ConfigError if tokens and vectors do not match."""
        tokenizer = _tokenizer(vocabulary)
        largest = max(tokenizer.get_vocab().values(), default=-1)
        if vectors.ndim != 2 or largest >= len(vectors):
            raise ConfigError(f"static embeddings: {largest + 1} tokens do not fit vectors of shape {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ConfigError("static embeddings: a vector has values that are not numbers")
        return cls(vectors, vocabulary, tokenizer)

    @property
    def dimensions(self) -> int:
        return int(self.vectors.shape[1])

    def embed(self, texts: Sequence[str]) -> Floats:
        """[n, dimensions], each row of length 1; zeros for a text without a known token."""
        read = [windowed(text).encode("utf-8", "replace").decode() for text in texts]
        try:
            with _panics_as_errors():
                encodings = self.tokenizer.encode_batch_fast(read, add_special_tokens=False)
        except Exception as error:  # a tokenizer rule fails on this text
            raise EmbeddingUnavailable(f"static embeddings: {TOKENIZER} fails: {brief(str(error))}") from error
        nothing = np.zeros(self.dimensions, dtype=np.float32)
        means = [self.vectors[one.ids].mean(axis=0) if one.ids else nothing for one in encodings]
        return of_length_one(np.stack(means))


def read_static_embeddings(folder: Path) -> StaticEmbeddings:
    """The table in a folder. Raises ConfigError if a file is missing or invalid."""
    try:
        _require_size(folder / TABLE, LARGEST_TABLE_BYTES)
        _require_size(folder / TOKENIZER, LARGEST_TOKENIZER_BYTES)
        tensors = dict(load_tensors((folder / TABLE).read_bytes()))
        vocabulary = (folder / TOKENIZER).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"static embeddings: {error.filename} cannot be read: {error.strerror}") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"static embeddings: {folder / TABLE} is not a safetensors file: {error}") from error
    if "embeddings" not in tensors:
        raise ConfigError(f"static embeddings: {folder / TABLE} has no tensor 'embeddings'")
    return StaticEmbeddings.of(_without_unknown(_weighted(tensors, folder), vocabulary, folder), vocabulary)


def _require_size(path: Path, largest: int) -> None:
    if (size := path.stat().st_size) > largest:
        raise ConfigError(f"static embeddings: {path} has {size:,} bytes; the limit is {largest:,}")


def _weighted(tensors: dict[str, npt.NDArray[Any]], folder: Path) -> Floats:
    """Vectors by token. model2vec may share rows between tokens (`mapping`) and has token weights (`weights`)."""
    vectors = tensors["embeddings"].astype(np.float32)
    try:
        if "mapping" in tensors:
            vectors = vectors[tensors["mapping"]]
        if "weights" in tensors:
            vectors = vectors * tensors["weights"].astype(np.float32)[:, np.newaxis]
    except (IndexError, ValueError) as error:
        raise ConfigError(f"static embeddings: the tensors in {folder / TABLE} do not fit together: {error}") from error
    return np.ascontiguousarray(vectors)


def _without_unknown(vectors: Floats, vocabulary: str, folder: Path) -> Floats:
    """The vectors with that of the unknown token set to zero."""
    try:
        model = json.loads(vocabulary)["model"]
        unknown = model.get("unk_id")
        if unknown is None:
            unknown = model["vocab"].get(model.get("unk_token"))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"static embeddings: {folder / TOKENIZER} is not a tokenizer.json") from error
    if isinstance(unknown, int) and 0 <= unknown < len(vectors):
        vectors[unknown] = 0.0
    return vectors


def _tokenizer(vocabulary: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer as Loaded  # noqa: PLC0415 - only where static embeddings are configured
    except ImportError as error:
        raise ConfigError(
            "static embeddings need the package tokenizers: it comes with the extra `static` (docs/upgrade.md)"
        ) from error
    _require_safe(vocabulary)
    try:
        with _panics_as_errors():
            tokenizer = Loaded.from_str(vocabulary)
            tokenizer.no_padding()
            tokenizer.no_truncation()
            tokenizer.encode_batch_fast(_TRIED, add_special_tokens=False)
    except Exception as error:
        raise ConfigError(f"static embeddings: {TOKENIZER} is not valid: {brief(str(error))}") from error
    return tokenizer


def _require_safe(vocabulary: str) -> None:
    try:
        rules = json.loads(vocabulary)
        if not isinstance(rules, dict):
            raise ValueError("it is not an object")
        require_safe(rules)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"static embeddings: {TOKENIZER} is not valid: {brief(str(error))}") from error
    except UnsafeRule as error:
        raise ConfigError(f"static embeddings: {TOKENIZER} is not used: {brief(str(error))}") from error


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Turn a Rust panic, which is not an `Exception`, into a RuntimeError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from error


class Embedder(Protocol):
    """Computes embeddings. Its creator closes it."""

    async def embed(self, texts: Sequence[str]) -> Floats:
        """[n, dimensions], each row of length 1. Raises EmbeddingUnavailable."""

    async def close(self) -> None:
        """Release connections and threads; the embedder can be used again."""


@dataclass(frozen=True, slots=True)
class OfLength:
    """An embedder that reads texts as in the router's training, and checks for its `dimensions`."""

    embedder: Embedder
    dimensions: int
    normalisation: Normalisation = "plain"

    async def embed(self, texts: Sequence[str]) -> Floats:
        rows = await self.embedder.embed([read_as(text, self.normalisation) for text in texts])
        if rows.shape[1] != self.dimensions:
            raise EmbeddingUnavailable(
                f"embeddings have {rows.shape[1]} dimensions; the router was trained with {self.dimensions}:"
                " set router.embeddings.model to the artifact's model"
            )
        return rows

    async def close(self) -> None:
        await self.embedder.close()


def finite(rows: Floats, source: str) -> Floats:
    """Return the rows [n, dimensions]. Raises EmbeddingNotFinite for the first text whose row has NaN or infinity."""
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
