from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from router_training.classifier.gram import Gram, inner_products
from router_training.classifier.models import fitted_logistic
from tests.examples import examples


def drawn(seed: int, prompts: int, columns: int, classes: int) -> tuple[sp.csr_array, np.ndarray]:
    generator = np.random.default_rng(seed)
    dense = generator.random((prompts, columns)) * (generator.random((prompts, columns)) < 0.3)
    labels = np.arange(prompts) % classes
    dense[np.arange(prompts), labels] += generator.random(prompts)
    return sp.csr_array(dense.astype(np.float32)), labels


@examples(20)
@given(st.integers(0, 1000), st.integers(2, 5), st.sampled_from([0.1, 1.0, 10.0]), st.booleans())
def test_it_ends_where_scikit_learn_ends(seed: int, classes: int, strength: float, kept: bool) -> None:
    vectors, labels = drawn(seed, 60, 90, classes)
    gram = Gram(vectors).kept() if kept else Gram(vectors)
    coefficients, intercepts = fitted_logistic(gram, labels, strength, 2000, close=1e-6)
    mine = np.exp(vectors @ coefficients + intercepts)
    mine /= mine.sum(axis=1, keepdims=True)
    theirs = LogisticRegression(C=strength, max_iter=10_000, tol=1e-9).fit(vectors.astype(np.float64), labels)
    if classes > 2:  # two classes it fits with one column: another penalty
        assert mine == pytest.approx(theirs.predict_proba(vectors), abs=1e-4)
    assert loss(vectors, labels, coefficients, intercepts, strength) <= 1e-5 + loss(
        vectors, labels, *both_columns(theirs), strength
    )


def both_columns(theirs: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    if len(theirs.classes_) > 2:
        return theirs.coef_.T, theirs.intercept_
    half = np.array([-0.5, 0.5])
    return theirs.coef_.T * half, theirs.intercept_ * half


def loss(vectors: sp.csr_array, labels: np.ndarray, weights: np.ndarray, constants: np.ndarray, c: float) -> float:
    logits = np.asarray(vectors @ weights + constants, dtype=np.float64)
    surprises = logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return float(surprises.sum() + (np.asarray(weights, dtype=np.float64) ** 2).sum() / (2.0 * c))


@examples(30)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(6, 40), st.sampled_from([1.0, 100.0, 1e5]))
def test_no_step_goes_uphill(seed: int, classes: int, prompts: int, strength: float) -> None:
    """Also where few prompts are told apart without effort and hardly anything holds the coefficients back."""
    vectors, labels = drawn(seed, prompts, 60, classes)
    losses = [
        loss(vectors, labels, *fitted_logistic(Gram(vectors), labels, strength, steps, close=1e-9), strength)
        for steps in range(12)
    ]
    assert losses[0] == pytest.approx(prompts * np.log(classes))
    assert all(after <= before * (1.0 + 1e-5) + 1e-4 for before, after in itertools.pairwise(losses))


@given(st.integers(0, 1000))
def test_the_gram_matrix_and_its_parts_are_inner_products(seed: int) -> None:
    vectors, _ = drawn(seed, 30, 50, 2)
    dense = vectors.toarray()
    generator = np.random.default_rng(seed)
    chosen, duals = generator.permutation(30)[:20], generator.normal(size=(20, 3))
    assert inner_products(vectors) == pytest.approx(dense @ dense.T, abs=1e-5)
    for gram in (Gram(vectors), Gram(vectors).kept()):
        part = gram.rows(chosen)
        assert part.times(duals) == pytest.approx(dense[chosen] @ (dense[chosen].T @ duals), abs=1e-4)
        assert part.coefficients(duals) == pytest.approx(dense[chosen].T @ duals, abs=1e-5)


def test_common_and_rare_columns_count_alike() -> None:
    """More columns than are multiplied as dense blocks."""
    vectors = sp.csr_array(sp.random_array((40, 7000), density=0.05, rng=np.random.default_rng(0), dtype=np.float32))
    dense = vectors.toarray()
    assert inner_products(vectors) == pytest.approx(dense @ dense.T, abs=1e-3)


def test_prompts_fewer_than_parts_are_fitted() -> None:
    vectors, labels = drawn(0, 3, 5, 3)
    coefficients, intercepts = fitted_logistic(Gram(vectors), labels, 1000.0, 500)
    assert list((vectors @ coefficients + intercepts).argmax(axis=1)) == [0, 1, 2]


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("columns", [[], [0, 3]])
def test_prompts_that_nothing_tells_apart_are_as_likely_of_one_class_as_of_another(
    classes: int, columns: list[int]
) -> None:
    """Without a known n-gram, or all with the same ones: the gradient is rounding from the start."""
    dense = np.zeros((2 * classes, 5), dtype=np.float32)
    dense[:, columns] = 0.5
    labels = np.arange(2 * classes) % classes
    coefficients, intercepts = fitted_logistic(Gram(sp.csr_array(dense)), labels, 10.0, 100)
    logits = dense @ coefficients + intercepts
    assert np.abs(logits - logits[0, 0]).max() < 1e-6
