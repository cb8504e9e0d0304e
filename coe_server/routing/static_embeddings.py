"""A table with one vector for each token: a text's embedding is the mean of its tokens' vectors.

Reads folders as model2vec writes them (`model.safetensors`, `tokenizer.json`, `config.json`); executes none of it.
The package `tokenizers` is imported only where such features are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from coe_server.errors import ConfigError, EmbeddingUnavailable
from coe_server.routing.features import Floats, of_length_one, windowed
from coe_server.routing.tokenizer_rules import UnsafeRule, require_safe
from coe_server.system.visible import brief

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TABLE, TOKENIZER = "model.safetensors", "tokenizer.json"
LARGEST_TABLE_BYTES, LARGEST_TOKENIZER_BYTES = 1 << 30, 64 << 20  # as in an artifact
_TRIED = ["", "a word", "\U0001f600 中 é \ufdfa \0\x7f", bytes(range(33, 127)).decode() * 8]


@dataclass(frozen=True, slots=True)
class StaticEmbeddings:
    """`vectors` [tokens, dimensions], each token's weight already in it; `vocabulary` is a tokenizer.json's text."""

    vectors: Floats
    vocabulary: str
    tokenizer: Tokenizer

    @classmethod
    def of(cls, vectors: Floats, vocabulary: str) -> StaticEmbeddings:
        """Raises ConfigError where tokens and vectors do not belong together."""
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
        except Exception as error:  # a rule that does not know this text
            raise EmbeddingUnavailable(f"static embeddings: {TOKENIZER} fails: {brief(str(error))}") from error
        nothing = np.zeros(self.dimensions, dtype=np.float32)
        means = [self.vectors[one.ids].mean(axis=0) if one.ids else nothing for one in encodings]
        return of_length_one(np.stack(means))


def read_static_embeddings(folder: Path) -> StaticEmbeddings:
    """The table in a folder. Raises ConfigError, one sentence, for anything missing or unreadable."""
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
        raise ConfigError(f"static embeddings: {path} has {size:,} bytes, more than the {largest:,} that are read")


def _weighted(tensors: dict[str, npt.NDArray[Any]], folder: Path) -> Floats:
    """Vectors by token: model2vec may share rows between tokens (`mapping`) and weigh tokens (`weights`)."""
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
    """The token for what the vocabulary has no token for says nothing."""
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
        raise ConfigError("static embeddings need the package tokenizers: pip install tokenizers") from error
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
            raise ValueError("it is no object")
        require_safe(rules)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"static embeddings: {TOKENIZER} is not valid: {brief(str(error))}") from error
    except UnsafeRule as error:
        raise ConfigError(f"static embeddings: {TOKENIZER} is not used: {brief(str(error))}") from error


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """What Rust calls a panic is no `Exception`, and would end more than what asked for it."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from error
