from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from router_training.classifier.sparse_rows import GrowingMatrix, rows_between

COLUMNS = 6
ROWS = st.lists(st.lists(st.integers(0, COLUMNS - 1), unique=True).map(sorted), max_size=12)


def matrix_of(rows: list[list[int]]) -> sp.csr_array:
    dense = np.zeros((len(rows), COLUMNS), dtype=np.float32)
    for number, row in enumerate(rows):
        dense[number, row] = number + 1.0
    return sp.csr_array(dense)


@given(ROWS, st.integers(1, 8), st.integers(1, 4))
def test_a_matrix_grown_row_by_row_is_the_one_made_at_once(rows: list[list[int]], room: int, at_once: int) -> None:
    grown = GrowingMatrix(COLUMNS, room)
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        indices = [column for row in some for column in row]
        values = [first + number + 1.0 for number, row in enumerate(some) for _ in row]
        lengths = [len(row) for row in some]
        grown.append(np.array(indices, dtype=np.int32), np.array(values, dtype=np.float32), lengths)
    found = grown.complete()
    assert found.shape == (len(rows), COLUMNS)
    assert np.array_equal(found.toarray(), matrix_of(rows).toarray())


@given(ROWS, st.integers(0, 12), st.integers(0, 12))
def test_rows_between_are_those_of_a_slice_and_not_copied(rows: list[list[int]], one: int, other: int) -> None:
    matrix = matrix_of(rows)
    first, end = sorted((min(one, len(rows)), other))
    found = rows_between(matrix, first, end)
    assert np.array_equal(found.toarray(), matrix[first:end].toarray())
    assert found.nnz == 0 or np.shares_memory(found.data, matrix.data)
