"""What the header of a GGUF file tells: its architecture, its context, and what a token of it takes. Reads no weights.

The format: docs/gguf.md of github.com/ggml-org/ggml, versions 2 and 3. Only the first MiB is looked at: keys of the
model stand before the tokenizer's, which are long. A file may be anything, so every length is checked.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HEADER_BYTES = 1 << 20
_MAGIC = b"GGUF"
_LONGEST_LIST = 4096  # numbers of each layer; longer ones are a tokenizer's
_STRING, _LIST = 8, 9
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_CACHE_VALUE_BYTES = 2  # llama.cpp keeps keys and values as 16-bit numbers unless it is told otherwise

Value = bool | int | float | str | tuple[bool | int | float, ...]


class NotGguf(Exception):
    """Not a GGUF file, or an unreadable one; the message has the reason."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The short keys of a header: `values` by name, as far as they are in the first MiB."""

    values: Mapping[str, Value]

    @property
    def architecture(self) -> str:
        """`llama`, `qwen2`, `clip`; empty if the header does not say."""
        return str(self.values.get("general.architecture", ""))

    @property
    def kind(self) -> str:
        """`model`, or `adapter`, `mmproj`, `vocab`, `imatrix`."""
        return str(self.values.get("general.type", "model"))

    @property
    def context_tokens(self) -> int | None:
        """The context length of its training."""
        return self._number("context_length")

    @property
    def parts(self) -> tuple[int, int]:
        """(index from 0, number) of the parts of a split model."""
        number, count = self.values.get("split.no"), self.values.get("split.count")
        return (number, count) if isinstance(number, int) and isinstance(count, int) and count > 0 else (0, 1)

    @property
    def token_bytes(self) -> int | None:
        """Bytes of one token's keys and values, over all layers; None if the header lacks fields."""
        layers, heads = self._number("block_count"), self._number("attention.head_count")
        hidden = self._number("embedding_length")
        if not (layers and heads and hidden):
            return None
        sizes = [self._number(f"attention.{of}_length") or hidden // heads for of in ("key", "value")]
        shared = self._of("attention.head_count_kv")
        if isinstance(shared, tuple):  # a number for each layer; those without a cache of their own have none
            groups = sum(self._whole(one) or 0 for one in shared)
        else:
            groups = layers * (self._whole(shared) or heads)
        return groups * sum(sizes) * _CACHE_VALUE_BYTES or None

    def _of(self, key: str) -> Value | None:
        return self.values.get(f"{self.architecture}.{key}")

    def _number(self, key: str) -> int | None:
        found = self._of(key)
        return self._whole(max(found, default=0) if isinstance(found, tuple) else found)

    @staticmethod
    def _whole(value: Value | None) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else None


def read_gguf(file: Path) -> GgufHeader:
    """The header of a regular file; nothing else is opened for longer than a look. Raises NotGguf and OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # do not block on a pipe
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotGguf("is no regular file")
        return parse_header(opened.read(HEADER_BYTES))


def parse_header(data: bytes) -> GgufHeader:
    """The keys in the first bytes of a file. Raises NotGguf."""
    if data[:4] != _MAGIC:
        raise NotGguf("does not begin as a GGUF file")
    reader = _Reader(data, 4)
    values: dict[str, Value] = {}
    try:
        version = reader.number("<I")
        if version not in {2, 3}:
            raise NotGguf(f"is a GGUF file of version {version}, where 2 and 3 are known")
        reader.number("<Q")  # of tensors
        for _ in range(int(reader.number("<Q"))):
            key = reader.text()
            value = reader.value(int(reader.number("<I")))
            if value is not None:
                values[key] = value
    except _AtItsEnd:
        pass  # the rest is the tokenizer's, or not there
    return GgufHeader(values)


class _AtItsEnd(Exception):
    """The data end too early."""


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def number(self, layout: str) -> int | float | bool:
        found: int | float | bool = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return found

    def text(self) -> str:
        return self._take(int(self.number("<Q"))).decode("utf-8", "replace")

    def value(self, kind: int) -> Value | None:
        """Read a value; None for a list that is skipped."""
        if kind == _STRING:
            return self.text()
        if kind == _LIST:
            return self._list(int(self.number("<I")), int(self.number("<Q")))
        if kind not in _FORMATS:
            raise NotGguf(f"is a GGUF file with a value of an unknown kind ({kind})")
        return self.number(_FORMATS[kind])

    def _list(self, kind: int, count: int) -> tuple[bool | int | float, ...] | None:
        if kind == _STRING:
            for _ in range(count):  # each takes eight bytes at least, so the data ends it
                self._take(int(self.number("<Q")))
            return None
        if kind not in _FORMATS:
            raise NotGguf(f"is a GGUF file with a list of an unknown kind ({kind})")
        if count <= _LONGEST_LIST:
            return tuple(self.number(_FORMATS[kind]) for _ in range(count))
        self._take(count * struct.calcsize(_FORMATS[kind]))
        return None

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise _AtItsEnd
        self._at += count
        return self._data[self._at - count : self._at]
