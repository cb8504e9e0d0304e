from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from coe_server.routing.features import Features, SparseVector
from coe_server.routing.gate import Gate
from router_training.classifier.classifier import RUN_LOOK_UPS, WORD_LOOK_UPS, fitted_gate, gate_similarities
from router_training.config import TrainingConfig

PROMPTS, COLUMNS, BITS = 100, 120, 12
CONFIG = TrainingConfig.model_validate(
    {"data": {"prompts": ["p"], "outcomes": ["o"]}, "experts": [{"name": "one", "active_params_b": 1.0}]}
)


def gate_of(has_column: np.ndarray, words: int) -> tuple[sp.csr_array, Gate]:
    """The gate of prompts that have the columns where `has_column` [prompts, columns]; the first are `words`."""
    kept = np.arange(COLUMNS) + (1 << (BITS - 1)) - words
    features = Features.of(BITS, kept, np.ones(COLUMNS, dtype=np.float32))
    weights = np.random.default_rng(0).random(has_column.shape, dtype=np.float32) + np.float32(0.1)
    vectors = sp.csr_array(np.where(has_column, weights, np.float32(0.0)))
    gate = fitted_gate(vectors, features, CONFIG)
    assert isinstance(gate, Gate)
    return vectors, gate


@pytest.mark.parametrize("words", [0, 60, 120])
def test_common_words_and_runs_are_looked_up_as_often_as_each_may(words: int) -> None:
    _, gate = gate_of(np.ones((PROMPTS, COLUMNS), dtype=bool), words)
    looked_up = np.diff(gate.starts)  # every prompt has every column
    assert looked_up[:words].sum() == min(WORD_LOOK_UPS, PROMPTS * words)
    assert looked_up[words:].sum() == min(RUN_LOOK_UPS, PROMPTS * (COLUMNS - words))


def test_many_similarities_at_once_are_those_of_one_prompt_after_the_other() -> None:
    vectors, gate = gate_of(np.random.default_rng(1).random((PROMPTS, COLUMNS)) < 0.2, 60)
    rows = [vectors[[row]].tocoo() for row in range(PROMPTS)]
    single = [gate.similarity(SparseVector(row.col.astype(np.int64), row.data)) for row in rows]
    assert gate_similarities(vectors, gate) == pytest.approx(np.array(single), abs=1e-6)
