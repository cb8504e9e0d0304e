from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from router_training import in_silence
from router_training.assignment.objectives import decided
from router_training.config import TrainingConfig, read_config
from router_training.cross_fit.draft import Learned, counted, learn
from router_training.cross_fit.out_of_fold import cross_validated, grounds_of, refitted
from router_training.data.dataset import Dataset, read_dataset
from router_training.evaluation.evaluation import decide
from router_training.evaluation.gains import exam_failed, weigh_evidence
from router_training.evaluation.metrics import Bootstrap
from tests.training.recorded import write_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    return read_config(write_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def dataset(config: TrainingConfig) -> Dataset:
    return read_dataset(config.data.prompts, config.data.outcomes, config.expert_names)


@pytest.fixture(scope="module")
def learned(config: TrainingConfig, dataset: Dataset) -> Learned:
    return learn(dataset, counted(dataset, config, in_silence), config, in_silence)


def test_step_two_of_a_fold_does_not_depend_on_the_outcomes_it_is_judged_by(learned: Learned) -> None:
    fold = learned.predictions.folds[0]
    others = learned.predicted.scores.copy()
    others[fold.left_out] = 1.0 - others[fold.left_out]
    changed = replace(learned.predicted, scores=others)
    for dataset in (learned.predicted, changed):
        again = refitted(learned.predictions, dataset, fold.seen, learned.config)
        assert np.array_equal(
            again.expected, refitted(learned.predictions, changed, fold.seen, learned.config).expected
        )


def test_evidence_finds_what_the_specialists_gain(learned: Learned) -> None:
    chosen = cross_validated(learned.predictions, learned.predicted, learned.config)
    evidence = weigh_evidence(chosen, learned.predicted, learned.draft.manifest, Bootstrap(200, 0))
    assert evidence["quality"].gain.low > 0.2
    assert evidence["cheap"].gain.low > 0.2
    assert evidence["cheap"].mean_cost <= 0.0009 * 1.05
    assert evidence["quality"].as_json()["gain_ci95"][0] == evidence["quality"].gain.low


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_training_decides_as_the_server_does(
    dataset: Dataset, config: TrainingConfig, tmp_path: Path, mode: str
) -> None:
    """With a predictions that read the prompts through the artifact itself."""
    settings = config.model_copy(update={"mapping": config.mapping.model_copy(update={"mode": mode})})
    learned = learn(dataset, counted(dataset, settings, in_silence), settings, in_silence)
    artifacts.save(learned.draft, learned.kept, None, tmp_path / "router")
    artifact = artifacts.load(tmp_path / "router")
    router = Router(artifact)
    served = decide(router, dataset, "cheap", in_silence)
    vectors = [artifact.features.vector(talk.turns) for talk in dataset.conversations]
    reading = replace(
        learned.predictions.reading,
        probabilities=served.probabilities,
        similarities=np.array([artifact.gate.similarity(vector) for vector in vectors]),
    )
    again = refitted(replace(learned.predictions, reading=reading), dataset, np.arange(len(dataset)), settings)
    exact = replace(again, step_two=learned.predictions.step_two, expected=served.expected)
    entry = artifact.manifest.objectives["cheap"]
    found = decided(entry, grounds_of(dataset, exact, settings), np.array(artifact.manifest.costs("cheap")))
    assert np.array_equal(found, served.chosen)


def test_a_certain_loss_on_prompts_held_out_is_a_failed_exam() -> None:
    assert exam_failed(0.0, has_budget=False) is None
    assert "against the best single expert: the upper bound is -0.20 points" in (exam_failed(-0.002, False) or "")
    assert "mixing single experts" in (exam_failed(-0.002, True) or "")
