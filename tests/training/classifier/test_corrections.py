from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from coe_server.routing.conversation import Conversation
from coe_server.routing.features import SparseVector
from router_training import in_silence
from router_training.classifier import calibration as corrections
from router_training.classifier.calibration import (
    UnseenCorrections,
    earned_share,
    fitted_corrections,
    out_of_fold_corrections,
    residuals,
)
from router_training.classifier.gram import Gram
from router_training.data.dataset import Dataset
from router_training.data.split import Fold


def prompts(seed: int, count: int = 80, columns: int = 30) -> sp.csr_array:
    return sp.csr_array(sp.random_array((count, columns), density=0.3, rng=np.random.default_rng(seed)))


@given(st.integers(0, 1000))
def test_corrections_are_the_ridge_regression_of_what_is_left(seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors, left, weights = prompts(seed), generator.normal(size=(80, 3)), generator.random(80) + 0.1
    fitted = fitted_corrections(Gram(vectors), left, weights).coefficients
    counted = np.sqrt(weights) / np.sqrt(weights).mean()
    dense = vectors.toarray()
    gram = dense.T @ (counted[:, np.newaxis] * dense) + corrections.STRENGTH * np.eye(30)
    exact = np.linalg.solve(gram, dense.T @ (counted[:, np.newaxis] * left))
    assert fitted == pytest.approx(exact, abs=2 * corrections.PRECISE * float(np.abs(exact).max()))


def test_what_serving_adds_is_what_training_fitted() -> None:
    vectors = prompts(0)
    fitted = fitted_corrections(Gram(vectors), np.random.default_rng(0).normal(size=(80, 3)), np.ones(80))
    row = vectors[[4]].tocsr()
    vector = SparseVector(row.indices.astype(np.int64), row.data.astype(np.float32))
    assert vector.times(fitted.coefficients) == pytest.approx((vectors @ fitted.coefficients)[4], abs=1e-6)


def test_only_differences_between_experts_are_left_and_missing_outcomes_leave_nothing() -> None:
    outcomes = np.array([[0.9, 0.7, 0.8], [1.0, np.nan, 0.0], [np.nan, np.nan, np.nan]])
    left = residuals(outcomes, np.full((3, 3), 0.5))
    assert left == pytest.approx(np.array([[0.1, -0.1, 0.0], [0.5, 0.0, -0.5], [0.0, 0.0, 0.0]]))


def recorded(scores: npt.NDArray[np.float64]) -> Dataset:
    count = len(scores)
    return Dataset(
        prompt_ids=tuple(f"p{number}" for number in range(count)),
        conversations=(Conversation.of_prompt("Hello"),) * count,
        categories=("all",),
        labels=np.zeros(count, dtype=np.int64),
        groups=np.array([""] * count),
        weights=np.ones(count),
        experts=tuple("abc"[: scores.shape[1]]),
        scores=scores,
        copies=np.arange(count),
    )


def test_no_prompt_has_a_say_in_its_own_correction() -> None:
    generator = np.random.default_rng(1)
    vectors = prompts(1)
    scores = 0.5 + 10.0 * (vectors @ generator.normal(size=(30, 2)))  # clear enough to earn its share
    folds = [Fold(np.arange(40, 80), np.arange(40)), Fold(np.arange(40), np.arange(40, 80))]

    def corrected() -> UnseenCorrections:
        known = recorded(scores.copy())
        return out_of_fold_corrections(
            Gram(vectors), known, lambda seen: np.full((80, 2), known.scores[seen].mean()), folds, in_silence
        )

    before = corrected()
    scores[:40] *= 1.01
    after = corrected()
    assert before.share == after.share == 1.0
    assert (before.corrections[:40] == after.corrections[:40]).all()
    assert not np.allclose(before.corrections[40:], after.corrections[40:])


def test_categories_of_few_prompts_do_not_speak_against_corrections() -> None:
    generator = np.random.default_rng(0)
    category = np.repeat(np.arange(60), 5)
    telling = generator.integers(0, 2, 300).astype(np.float64)
    vectors = sp.csr_array(np.column_stack((3.0 * np.eye(60)[category], 3.0 * telling)))
    advantage = 0.1 * (telling - 0.5) + generator.normal(size=300)
    known = recorded(np.column_stack((advantage, -advantage)))
    folds = [Fold(np.flatnonzero(np.arange(300) % 5 != k), np.flatnonzero(np.arange(300) % 5 == k)) for k in range(5)]

    def expected(seen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        share = np.eye(60)[category][seen]
        return np.asarray(((share.T @ known.scores[seen]) / share.sum(axis=0)[:, np.newaxis])[category])

    assert out_of_fold_corrections(Gram(vectors), known, expected, folds, in_silence).share > 0.5


def test_noise_earns_no_share_and_a_true_signal_its_part() -> None:
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(500, 2))
    assert earned_share(generator.normal(size=(500, 2)), generator.normal(size=(500, 2)), np.ones(500)) == 0.0
    assert earned_share(signal, 0.5 * signal + generator.normal(size=(500, 2)), np.ones(500)) == pytest.approx(
        0.5, abs=0.1
    )
    assert earned_share(signal, 2.0 * signal, np.ones(500)) == 1.0
    assert earned_share(np.zeros((5, 2)), np.ones((5, 2)), np.ones(5)) == 0.0
