from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import DatasetError
from coe_server.routing.classifier import CategoryModel
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.classifier.classifier import prompt_folds, self_trained
from router_training.classifier.discovery import telling_names, with_categories
from router_training.classifier.gram import Gram
from router_training.classifier.models import batch_logits, fit_model
from router_training.config import ClassifierSettings, TrainingConfig, read_config
from router_training.cross_fit.thresholds import NEVER, fitted_entropy_limit
from router_training.data.checks import require_trainable
from router_training.data.dataset import Dataset, read_dataset
from router_training.data.near_duplicates import with_near_duplicates
from router_training.data.split import Split
from router_training.fit import fit
from tests.training.recorded import SIZES, SPECIALIST, WORDS, outcomes, prompts, write_jsonl, write_run


def unlabelled_run(folder: Path, **data: object) -> TrainingConfig:
    """A run whose prompts have no category; what they are about is plain from their words."""
    path = write_run(
        folder,
        data={"prompts": ["prompts.jsonl"], "outcomes": ["outcomes.jsonl"], **data},
        features={"bucket_bits": 15},
    )
    write_jsonl(folder / "prompts.jsonl", [{**row, "category": None} for row in prompts(60)])
    return read_config(path)


def read(config: TrainingConfig) -> Dataset:
    return read_dataset(config.data.prompts, config.data.outcomes, config.expert_names, config.data.label)


@pytest.mark.parametrize("asked", ["auto", 4])
def test_topics_are_found_without_a_label(tmp_path: Path, asked: object) -> None:
    config = unlabelled_run(tmp_path, categories=asked)
    found = with_categories(read(config), config, in_silence)
    truth = np.array([row["category"] for row in prompts(60)])
    assert len(found.categories) == 4
    for label in range(4):
        topics, counts = np.unique(truth[found.labels == label], return_counts=True)
        assert counts.max() >= 0.9 * counts.sum()
        words = set(found.categories[label].split("-"))
        assert words <= set(WORDS[str(topics[counts.argmax()])])


def test_a_router_is_trained_without_a_single_label(tmp_path: Path) -> None:
    config = unlabelled_run(tmp_path)
    result = fit(config, tmp_path / "router", force=False, track=in_silence)
    assert result.refusals["quality"] is None
    assert result.evaluation["calibration"]["ece"] is None
    assert result.evaluation["category_ceiling"] is None
    router = Router.load(tmp_path / "router")
    nearby = dict.fromkeys(SIZES, Availability("disk", 1.0))
    unseen = prompts(10, seed=99)
    right = [
        router.route(Conversation.of_prompt(row["prompt"]), RouteOptions(), nearby).expert
        == SPECIALIST[row["category"]]
        for row in unseen
    ]
    assert np.mean(right) > 0.85


def test_a_column_that_was_named_and_is_not_there_is_no_wish_for_discovery(tmp_path: Path) -> None:
    config = unlabelled_run(tmp_path, label="categroy")
    dataset = read(config)
    with pytest.raises(DatasetError, match="no training prompt has a 'categroy'"):
        require_trainable(Split(dataset, dataset, moved=0), config)


def test_labels_that_are_there_stay(tmp_path: Path) -> None:
    config = read_config(write_run(tmp_path))
    dataset = read(config)
    assert with_categories(dataset, config, in_silence) is dataset


def test_more_categories_than_prompts_are_refused(tmp_path: Path) -> None:
    config = unlabelled_run(tmp_path, categories=900)
    with pytest.raises(DatasetError, match="900 categories cannot be found in 240 prompts"):
        with_categories(read(config), config, in_silence)


@pytest.mark.parametrize(("different", "categories"), [(2, 1), (3, 2), (5, 4)])
def test_copies_of_few_prompts_fall_into_fewer_categories_than_there_are_prompts(
    tmp_path: Path, different: int, categories: int
) -> None:
    """So that some category has two that are no copies of each other, which folds need."""
    config = unlabelled_run(tmp_path)
    rows = prompts(60)
    texts = [row["prompt"] for row in rows[:: 240 // different]][:different]
    write_jsonl(
        tmp_path / "prompts.jsonl",
        [{**row, "category": None, "prompt": texts[at % different]} for at, row in enumerate(rows)],
    )
    dataset = with_near_duplicates(read(config), in_silence)
    assert len(np.unique(dataset.copies)) == different
    found = with_categories(dataset, config, in_silence)
    assert len(found.categories) <= categories
    assert len(prompt_folds(found, 5, seed=0)) >= 2


@given(st.lists(st.text(max_size=30), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_names_differ_and_are_safe_in_a_file_system(texts: list[str], draw: random.Random) -> None:
    kinds = draw.randint(1, len(texts))
    labels = np.array([number % kinds for number in range(len(texts))])
    names = telling_names(texts, labels)
    assert len(set(names)) == kinds
    assert "general" not in names
    assert all(re.fullmatch(r"[^\W_]+(-[^\W_]+)*", name) for name in names)


def test_words_that_all_have_tell_nothing() -> None:
    texts = ["please sort this list", "please sort that array", "please cook soup", "please cook pasta soup"]
    first, second = telling_names(texts, np.array([0, 0, 1, 1]))
    assert first.startswith("sort")
    assert second.startswith("cook-soup")
    assert "please" not in (*first.split("-")[:1], *second.split("-")[:2])


def test_prompts_without_a_category_make_the_classifier_better() -> None:
    """Three labelled prompts of each kind share few words with the rest; the unlabelled ones link them."""
    accuracies = {None: [], 0.5: []}  # type: dict[float | None, list[float]]
    for seed in range(5):
        vectors, truth = linked_by_unlabelled(seed)
        labels = np.where(np.arange(len(truth)) < 12, truth, -1)
        for confidence, found in accuracies.items():
            model = self_trained(fit_logistic, Gram(vectors[:800]), labels[:800], confidence)
            found.append(float((batch_logits(model, vectors[800:]).argmax(axis=1) == truth[800:]).mean()))
    assert np.mean(accuracies[0.5]) > np.mean(accuracies[None]) + 0.03


def test_without_unlabelled_prompts_self_training_changes_nothing() -> None:
    vectors, truth = linked_by_unlabelled(0)
    plain = fit_logistic(Gram(vectors[:100]), truth[:100])
    trained = self_trained(fit_logistic, Gram(vectors[:100]), truth[:100], 0.5)
    assert np.array_equal(batch_logits(plain, vectors), batch_logits(trained, vectors))


def linked_by_unlabelled(seed: int) -> tuple[sp.csr_array, np.ndarray]:
    """1,200 prompts of four kinds; each has 8 of the 60 words of its kind, and 4 of 60 that all kinds use."""
    generator = np.random.default_rng(seed)
    truth = np.arange(1200) % 4
    rows = np.zeros((1200, 300), dtype=np.float32)
    for row, kind in enumerate(truth):
        rows[row, kind * 60 + generator.choice(60, 8, replace=False)] = 1.0
        rows[row, 240 + generator.choice(60, 4, replace=False)] = 1.0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return sp.csr_array(rows), truth


def fit_logistic(gram: Gram, labels: np.ndarray) -> CategoryModel:
    return fit_model(gram, labels, 4, ClassifierSettings(), seed=0)


def test_prompts_the_classifier_is_lost_on_go_to_general() -> None:
    """Trusting the categories gains below an entropy of 0.6 and loses above it."""
    generator = np.random.default_rng(0)
    entropies = generator.random(2000)
    gains = np.where(entropies < 0.6, 0.2, -0.3) + 0.3 * generator.normal(size=2000)
    limit = fitted_entropy_limit(entropies, gains, np.ones(2000))
    assert 0.55 < limit < 0.7


@pytest.mark.parametrize("seed", range(5))
def test_without_a_clear_loss_no_prompt_goes_to_general(seed: int) -> None:
    generator = np.random.default_rng(seed)
    entropies = generator.random(500)
    gains = 0.02 + 0.3 * generator.normal(size=500)
    assert fitted_entropy_limit(entropies, gains, np.ones(500)) == NEVER
    assert fitted_entropy_limit(np.empty(0), np.empty(0), np.empty(0)) == NEVER


def test_a_configured_limit_is_served(tmp_path: Path) -> None:
    config = read_config(write_run(tmp_path, classifier={"folds": 3, "max_entropy": 0.4}))
    fit(config, tmp_path / "router", force=True, track=in_silence)
    assert Router.load(tmp_path / "router").artifact.manifest.thresholds.max_entropy == 0.4


@pytest.mark.parametrize("kind", ["svm", "knn", "mlp", "auto"])
def test_every_kind_of_classifier_ends_in_a_router_that_serves(tmp_path: Path, kind: str) -> None:
    settings = {"kind": kind, "folds": 3, "calibration": "isotonic" if kind == "svm" else "temperature"}
    settings |= {"reduced_dimensions": 32, "hidden_units": 32}  # a fit takes a tenth of the usual ones' time
    config = read_config(write_run(tmp_path, per_category=40, classifier=settings))
    result = fit(config, tmp_path / "router", force=False, track=in_silence)
    assert result.refusals["quality"] is None
    router = Router.load(tmp_path / "router")
    assert router.artifact.manifest.classifier.kind in {"logistic", "svm", "knn", "mlp"}
    nearby = dict.fromkeys(SIZES, Availability("disk", 1.0))
    decision = router.route(Conversation.of_prompt("bonjour merci maison"), RouteOptions(), nearby)
    assert decision.expert == "fr"
    calibration = result.evaluation["calibration"]
    assert calibration["brier"] <= calibration["brier_before"] + 0.05


def test_outcomes_made_up_are_as_plain_as_said() -> None:
    rows = prompts(50)
    home = {row["prompt_id"]: SPECIALIST[row["category"]] for row in rows}
    at_home = [one["score"] for one in outcomes(rows) if home[one["prompt_id"]] == one["expert"]]
    assert np.mean(at_home) > 0.85
