"""Sparse matrices with a row for each prompt, built and read in little more memory than they take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Matrix = sp.csr_array
ROOM = 1 << 24  # entries of a block: 64 MB; malloc does not return freed blocks below 32 MB to the system
COUNTED = 1 << 22  # entries at a time


class GrowingMatrix:
    """A sparse matrix built row by row in little more memory than the result.

    Many prompts need gigabytes, and concatenating a list of rows would need them twice.
    """

    def __init__(self, columns: int, room: int = ROOM) -> None:
        """`room` is the number of entries allocated at a time."""
        self._columns, self._room = columns, room
        self._indices: list[npt.NDArray[np.int32]] = []
        self._values: list[npt.NDArray[np.float32]] = []
        self._lengths: list[int] = []
        self._used = 0

    def append(self, indices: npt.NDArray[np.int32], values: npt.NDArray[np.float32], lengths: Iterable[int]) -> None:
        """Append rows of these lengths."""
        if not self._indices or self._used + len(indices) > self._room:
            self._close_block()
            room = max(self._room, len(indices))
            self._indices.append(np.empty(room, dtype=np.int32))
            self._values.append(np.empty(room, dtype=np.float32))
            self._used = 0
        end = self._used + len(indices)
        self._indices[-1][self._used : end] = indices
        self._values[-1][self._used : end] = values
        self._used = end
        self._lengths += lengths

    def complete(self) -> Matrix:
        """The matrix of all rows; no row can be added afterwards."""
        self._close_block()
        ends = np.concatenate(([0], np.cumsum(self._lengths, dtype=np.int64)))
        kind = np.int32 if ends[-1] < 1 << 31 else np.int64
        values, indices = _drained(self._values, np.float32), _drained(self._indices, np.int32)
        shape = (len(self._lengths), self._columns)
        return sp.csr_array((values, indices.astype(kind, copy=False), ends.astype(kind)), shape=shape)

    def _close_block(self) -> None:
        """Trim the last block to its used length."""
        if self._indices:
            self._indices[-1] = self._indices[-1][: self._used]
            self._values[-1] = self._values[-1][: self._used]


def rows_with(matrix: Matrix) -> npt.NDArray[np.int64]:
    """[columns]: the number of rows with an entry there.

    Works in blocks, because counting doubles each index's size.
    """
    found = np.zeros(matrix.shape[1], dtype=np.int64)
    for at in range(0, len(matrix.indices), COUNTED):
        found += np.bincount(matrix.indices[at : at + COUNTED], minlength=matrix.shape[1])
    return found


def rows_between(matrix: Matrix, first: int, end: int) -> Matrix:
    """Some rows of a matrix, not copied."""
    end = min(end, matrix.shape[0])
    low, high = matrix.indptr[first], matrix.indptr[end]
    rows = sp.csr_array((end - first, matrix.shape[1]), dtype=matrix.dtype)
    # the constructor would copy parts of less than half
    rows.data, rows.indices = matrix.data[low:high], matrix.indices[low:high]
    rows.indptr = matrix.indptr[first : end + 1] - low
    return rows


def _drained(blocks: list[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    """The blocks as one array; each block is freed once it is copied."""
    whole = np.empty(sum(len(block) for block in blocks), dtype=kind)
    at = len(whole)
    while blocks:
        block = blocks.pop()
        at -= len(block)
        whole[at : at + len(block)] = block
    return whole
