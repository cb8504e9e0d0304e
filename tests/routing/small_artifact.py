"""A hand-made router: three categories with distinct words, three experts, known scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from coe_server.routing.artifact import Artifact, HeldOut
from coe_server.routing.classifier import Classifier, LinearModel, Temperature
from coe_server.routing.decision import Availability
from coe_server.routing.features import Features, Turn, buckets
from coe_server.routing.gate import Gate, postings
from coe_server.routing.manifest import ExpertEntry, FeatureSettings, Manifest, ObjectiveEntry, ScoreEntry, Thresholds

BITS = 14
TEXTS = {
    "code": "python function loop variable compile",
    "french": "bonjour merci maison chien pomme",
    "maths": "integral equation theorem prime algebra",
}
FOREIGN = "zzqx wwvk jjyy"
SIZES = {"coder": 7.0, "linguist": 9.0, "big": 70.0}
SCORES = {
    "code": {"coder": 0.80, "linguist": 0.20, "big": 0.82},
    "french": {"coder": 0.10, "linguist": 0.90, "big": 0.70},
    "maths": {"coder": 0.40, "linguist": 0.30, "big": 0.75},
}
OVERALL = {"coder": 0.43, "linguist": 0.47, "big": 0.76}
BEST = {"code": "big", "french": "linguist", "maths": "big", "general": "big"}
SMALL = {"code": "coder", "french": "linguist", "maths": "coder", "general": "linguist"}


def small_artifact(**changes: Any) -> Artifact:
    """The artifact; `changes` replace fields of its manifest."""
    columns_of = {name: np.unique(buckets(text, BITS)).astype(np.int64) for name, text in TEXTS.items()}
    kept = np.unique(np.concatenate(list(columns_of.values())))
    features = Features.of(BITS, kept, np.ones(len(kept), dtype=np.float32))
    coefficients = np.zeros((len(kept), len(TEXTS)), dtype=np.float32)
    for position, columns in enumerate(columns_of.values()):
        coefficients[np.searchsorted(kept, columns), position] = 1.0
    prototypes = np.zeros((len(kept), len(TEXTS)), dtype=np.float32)
    for position, text in enumerate(TEXTS.values()):
        vector = features.vector((Turn(text),))
        prototypes[vector.columns, position] = vector.weights / np.linalg.norm(vector.weights)
    columns, rows = np.nonzero(prototypes)
    starts = np.searchsorted(columns, np.arange(len(kept) + 1))
    settings = manifest(**changes)
    gate = Gate(
        starts.astype(np.int64),
        postings(rows, prototypes[columns, rows]),
        settings.prototypes,
        settings.neighbours,
        settings.thresholds.gate,
    )
    return Artifact(
        settings,
        features,
        Classifier(
            LinearModel(coefficients, np.zeros(len(TEXTS), dtype=np.float32)), Temperature(settings.temperature)
        ),
        gate,
        {name: dict(entry.mapping) for name, entry in settings.objectives.items()},
    )


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "features": FeatureSettings(bucket_bits=BITS),
        "categories": list(TEXTS),
        "temperature": 1.0,
        "prototypes": 3,
        "neighbours": 1,
        "thresholds": Thresholds(gate=0.2, min_confidence=0.0),
        "mode": "soft",
        "experts": [
            ExpertEntry(
                name=name, active_params_b=size, total_params_b=size, context_tokens=1000, vision=False, tools=True
            )
            for name, size in SIZES.items()
        ],
        "score": {category: {e: _entry(s) for e, s in row.items()} for category, row in SCORES.items()},
        "overall": {name: _entry(score) for name, score in OVERALL.items()},
        "objectives": {
            "quality": objective(BEST),
            "cheap": objective(SMALL, active_params_b=10.0, multiplier=0.01),
            "unearned": objective(BEST, shipped=False, refusal="it lost"),
        },
        "pins": {},
        "bans": {},
        "front": [],
        "seed": 0,
        "data_hash": "0",
        "prompts": 3,
        "versions": {},
    }
    return Manifest(**{**fields, **changes})


def objective(mapping: dict[str, str], **changes: Any) -> ObjectiveEntry:
    fields: dict[str, Any] = {
        "active_params_b": None,
        "multiplier": 0.0,
        "experts": list(SIZES),
        "mapping": mapping,
        "fallback": mapping["general"],
        "expected_score": 0.5,
        "expected_active_params_b": 10.0,
        "gap": 0.0,
    }
    return ObjectiveEntry(**{**fields, **changes})


def held_out() -> HeldOut:
    return HeldOut(
        np.full((2, len(TEXTS)), 1 / len(TEXTS), dtype=np.float32),
        np.zeros((2, len(SIZES)), dtype=np.float32),
        np.ones(2, dtype=np.float32),
        np.ones(2, dtype=np.float32),
        np.ones(2, dtype=np.float32),
    )


def everywhere(**changes: Availability) -> dict[str, Availability]:
    """All experts on disk, 10 s away, but for `changes`."""
    return {**dict.fromkeys(SIZES, Availability("disk", 10.0)), **changes}


def _entry(score: float) -> ScoreEntry:
    return ScoreEntry(score=score, prompts=10, standard_error=0.01)
