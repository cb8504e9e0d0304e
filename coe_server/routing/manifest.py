"""The shape of an artifact's `manifest.json`; unknown keys, NaN and wrong types are refused.

Knows nothing of files.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1

Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FeatureSettings(_Strict):
    kind: Literal["hashed-ngrams"] = "hashed-ngrams"
    bucket_bits: Annotated[int, Field(ge=8, le=22)]


class ClassifierEntry(_Strict):
    """Which model the weights are of, and how its logits become probabilities; `neighbours` are those of `knn`."""

    kind: Literal["logistic", "svm", "knn", "mlp"] = "logistic"
    calibration: Literal["temperature", "sigmoid", "isotonic"] = "temperature"
    neighbours: Annotated[int, Field(ge=1)] = 1


class Thresholds(_Strict):
    """Below `min_confidence`, or above `max_entropy` (1: nothing is), the experts' overall means decide."""

    gate: float
    min_confidence: Share
    max_entropy: Share = 1.0


class ExpertEntry(_Strict):
    name: Name
    active_params_b: Annotated[float, Field(gt=0.0)]
    total_params_b: Annotated[float, Field(gt=0.0)]
    context_tokens: Annotated[int, Field(gt=0)] | None
    vision: bool
    tools: bool


class ScoreEntry(_Strict):
    """A mean score, the prompts it was taken from, and its standard error (None below two prompts)."""

    score: Share
    prompts: Annotated[int, Field(ge=0)]
    standard_error: Annotated[float, Field(ge=0.0)] | None


class FrontPoint(_Strict):
    """One supported point of score against mean active parameters, and the experts it uses."""

    score: Share
    mean_active_params_b: Annotated[float, Field(ge=0.0)]
    experts: list[Name]
    gap: Annotated[float, Field(ge=0.0)]


class ObjectiveEntry(_Strict):
    """A budget (None: no limit), its multiplier, its mapping as solved, and whether it may be served.

    `fallback` answers outside the gate in hard mode; `mapping` has a line for every category and `general`.
    `refusal` is the sentence that says why it is not shipped.
    """

    active_params_b: Annotated[float, Field(gt=0.0)] | None
    multiplier: Annotated[float, Field(ge=0.0)]
    experts: list[Name]
    mapping: dict[Name, Name]
    fallback: Name
    expected_score: Share
    expected_active_params_b: Annotated[float, Field(ge=0.0)]
    gap: Annotated[float, Field(ge=0.0)]
    shipped: bool = True
    refusal: str | None = None


class Manifest(_Strict):
    format_version: int = FORMAT_VERSION
    features: FeatureSettings
    categories: Annotated[list[Name], Field(min_length=1)]
    classifier: ClassifierEntry = ClassifierEntry()
    temperature: Annotated[float, Field(gt=0.0)]
    prototypes: Annotated[int, Field(ge=1, le=100_000)]
    neighbours: Annotated[int, Field(ge=1)]
    thresholds: Thresholds
    mode: Literal["soft", "hard"]
    experts: Annotated[list[ExpertEntry], Field(min_length=1)]
    score: dict[Name, dict[Name, ScoreEntry]]
    overall: dict[Name, ScoreEntry]
    objectives: Annotated[dict[Name, ObjectiveEntry], Field(min_length=1)]
    pins: dict[Name, Name]
    bans: dict[Name, list[Name]]
    front: list[FrontPoint]
    seed: int
    data_hash: str
    prompts: int
    versions: dict[str, str]
    evaluation: dict[str, float | None] = {}
    checksums: dict[str, str] = {}
