"""Inner products of all prompts: a regularised linear model has as many unknowns in the dual as there are prompts.

The Gram matrix is kept for small data sets, and every fold takes its part of it.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from coe_server.routing.features import Floats
from router_training.classifier.sparse_rows import Matrix, rows_between

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]
KEPT_PROMPTS = 12_000  # up to which the matrix is kept: 576 MB
COMMON_COLUMNS = 6_000  # multiplied as dense blocks: a tenth of the columns takes nine tenths of the time
DENSE_BLOCK = 1_000
PARTS = 4  # of the prompts, multiplied side by side where the matrix is not kept


@dataclass(frozen=True, slots=True)
class Gram:
    """n prompts: `vectors` [n, columns] and, where it is kept, `matrix` [n, n] of their inner products."""

    vectors: Matrix
    matrix: Floats | None = None

    def __len__(self) -> int:
        return int(self.vectors.shape[0])

    def kept(self) -> Gram:
        """The same with its matrix computed, unless there are too many prompts: it pays off for several fits."""
        if self.matrix is not None or len(self) > KEPT_PROMPTS:
            return self
        return Gram(self.vectors, inner_products(self.vectors))

    def rows(self, chosen: Ints) -> Gram:
        """Some of the prompts."""
        if len(chosen) == len(self) and np.array_equal(chosen, np.arange(len(self))):
            return self
        part = None if self.matrix is None else self.matrix[chosen].take(chosen, axis=1)
        return Gram(self.vectors[chosen], part)

    def times(self, duals: Vector) -> Vector:
        """[n, k]: the matrix times `duals` [n, k]."""
        single = duals.astype(np.float32)
        if self.matrix is not None:
            return np.asarray(self.matrix @ single, dtype=np.float64)
        return _times_side_by_side(self.vectors, single)

    def coefficients(self, duals: Vector) -> Floats:
        """[columns, k]: the linear map that `duals` [n, k] stand for."""
        return np.asarray(self.vectors.T @ duals.astype(np.float32))


def _times_side_by_side(vectors: Matrix, duals: Floats) -> Vector:
    """[n, k]: computed in parts on several cores; the parts do not depend on the machine."""
    bounds = np.linspace(0, vectors.shape[0], PARTS + 1).astype(np.int64).tolist()
    sides = [slice(low, high) for low, high in itertools.pairwise(bounds)]
    parts = [rows_between(vectors, side.start, side.stop) for side in sides]
    with ThreadPoolExecutor(PARTS) as threads:
        shares = threads.map(lambda part, side: part.T @ duals[side], parts, sides)
        coefficients = np.sum(list(shares), axis=0)
        products = list(threads.map(lambda part: part @ coefficients, parts))
    return np.concatenate(products).astype(np.float64)


def inner_products(vectors: Matrix) -> Floats:
    """[n, n], from vectors [n, columns]."""
    count = vectors.shape[0]
    prompts_with = np.bincount(vectors.indices, minlength=vectors.shape[1])
    order = np.argsort(-prompts_with, kind="stable")
    products = np.zeros((count, count), dtype=np.float32)
    for at in range(0, min(COMMON_COLUMNS, len(order)), DENSE_BLOCK):
        common = np.sort(order[at : min(at + DENSE_BLOCK, COMMON_COLUMNS)])
        dense = np.asarray(vectors[:, common].toarray(), dtype=np.float32)
        products += dense @ dense.T
    rare = sp.csr_array(vectors[:, np.sort(order[COMMON_COLUMNS:])])
    across = sp.csr_array(rare.T)
    for at in range(0, count, DENSE_BLOCK):
        products[at : at + DENSE_BLOCK] += (rare[at : at + DENSE_BLOCK] @ across).toarray()
    return products
