from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from router_training.step_one.logistic import fitted_logistic


def drawn(count: int, columns: int, classes: int, seed: int) -> tuple[sp.csr_array, np.ndarray]:
    """Vectors whose classes overlap; most entries are zero."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    dense = generator.random((count, columns)) * (generator.random((count, columns)) < 0.2)
    dense[np.arange(count), labels] += generator.random(count)
    return sp.csr_array(dense.astype(np.float32)), labels


@pytest.mark.parametrize("strength", [0.3, 10.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probabilities_are_those_of_scikit_learn(classes: int, strength: float) -> None:
    vectors, labels = drawn(203, 30, classes, seed=classes)
    coefficients, intercepts = fitted_logistic(vectors, labels, strength, 5000, smooth=1e-6)
    logits = vectors @ coefficients + intercepts
    mine = np.exp(logits - logits.max(axis=1, keepdims=True))
    mine /= mine.sum(axis=1, keepdims=True)
    theirs = LogisticRegression(C=strength, tol=1e-6, max_iter=5000).fit(vectors, labels)
    assert mine == pytest.approx(theirs.predict_proba(vectors), abs=1e-3)  # single precision


def test_prompts_fewer_than_parts_are_fitted() -> None:
    vectors, labels = drawn(3, 5, 3, seed=0)
    coefficients, intercepts = fitted_logistic(vectors, labels, 1000.0, 500)
    assert list((vectors @ coefficients + intercepts).argmax(axis=1)) == [0, 1, 2]
