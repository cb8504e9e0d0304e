"""GGUF files for tests: a header as llama.cpp writes it, and a sparse hole of the weights' size."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

LLAMA = {
    "general.architecture": "llama",
    "general.type": "model",
    "llama.block_count": 32,
    "llama.context_length": 131_072,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}
TOKENIZER = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [f"token {number}" for number in range(2000)]}


def header(values: Mapping[str, object] = LLAMA, version: int = 3) -> bytes:
    keys = {**values, **TOKENIZER}
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(keys)) + b"".join(_text(k) + _kind(v) for k, v in keys.items())


def write_gguf(file: Path, size_bytes: int = 0, values: Mapping[str, object] = LLAMA) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(header(values))
        out.truncate(max(size_bytes, out.tell()))
    return file


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _kind(value: object) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + _text(value)
        case int():
            return struct.pack("<II", 4, value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
        case [int(), *_]:
            return struct.pack("<IIQ", 9, 4, len(value)) + struct.pack(f"<{len(value)}I", *value)
    raise AssertionError(value)
