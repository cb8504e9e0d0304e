"""Names, types and shapes of the tensors in safetensors files, from their headers. Reads no weights, runs no code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LONGEST_HEADER_BYTES = 32 << 20  # of the largest published models: 1 MB a file
_MOST_PARTS = 1 << 20  # objects and lists in a header: a tensor has one and two; each takes far more memory than text
_LENGTH_BYTES = 8  # little-endian, before the header


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor; `dtype` as the format names it: F32, BF16, U8."""

    dtype: str
    shape: tuple[int, ...]


def tensor_headers(file: Path) -> dict[str, TensorHeader]:
    """Tensor name -> its header. Raises ValueError, naming the file, unless it is a whole safetensors file."""
    try:
        with file.open("rb") as there:
            length = int.from_bytes(there.read(_LENGTH_BYTES), "little")
            size_bytes = os.fstat(there.fileno()).st_size - _LENGTH_BYTES - length
            if size_bytes < 0 or length > _LONGEST_HEADER_BYTES:
                raise ValueError("its header does not fit")
            header = there.read(length)
            if header.count(b"{") + header.count(b"[") > _MOST_PARTS:
                raise ValueError("its header has too many parts")
            told = json.loads(header)
        told.pop("__metadata__", None)
        return {str(name): _tensor(one, size_bytes) for name, one in told.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValueError(f"{file} is not a whole safetensors file ({why})") from error


def shapes_in(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in these files; files of another format count as empty. Raises ValueError."""
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            found |= {name: one.shape for name, one in tensor_headers(file).items()}
    return found


def _tensor(fields: dict[str, Any], size_bytes: int) -> TensorHeader:
    start, end = fields["data_offsets"]
    shape = tuple(fields["shape"])
    if not all(type(one) is int and one >= 0 for one in (*shape, start, end)) or not start <= end <= size_bytes:
        raise ValueError("a tensor lies outside the file")
    return TensorHeader(str(fields["dtype"]), shape)
