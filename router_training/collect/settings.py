"""The typed settings of `coe-train collect` and the targets of its requests; refuses unknown keys, naming the key.

Every key is explained in `configs/collect.yaml`. Paths in a file are relative to that file. API keys are never in a
file: a setting names the environment variable that holds one, and `api_key` reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from coe_server.config.addresses import BaseUrl, parse_base_url
from coe_server.config.proxies import Proxies, Proxy
from coe_server.config.types import clean_secret
from coe_server.errors import ConfigError
from router_training.config import Name, read_settings

Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Tolerance = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Options = dict[Name, Any]
Message = Mapping[str, Any]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class AskedExpert(_Settings):
    name: Name
    base_url: BaseUrl | None = None
    model: Name | None = None
    api_key_env: Name | None = None
    options: Options = {}
    of: Name | None = None


class RequestSettings(_Settings):
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    timeout_seconds: Seconds = 300.0
    retries: Annotated[int, Field(ge=0, le=100)] = 5
    options: Options = {"temperature": 0, "max_tokens": 1024}


class ExactSettings(_Settings):
    kind: Literal["exact"]
    ignore: list[Literal["case", "whitespace", "punctuation", "articles"]] = []


class NumericSettings(_Settings):
    kind: Literal["numeric"]
    absolute_tolerance: Tolerance = 1e-6
    relative_tolerance: Tolerance = 0.0


class ChoiceSettings(_Settings):
    kind: Literal["choice"]
    letters: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2,26}$")] = "ABCD"


class RegexSettings(_Settings):
    kind: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1)] | None = None
    column: Name = "pattern"
    time_limit_seconds: Seconds = 1.0


class FunctionSettings(_Settings):
    kind: Literal["python"]
    function: Annotated[str, StringConstraints(pattern=r"^[\w.]+:\w+$")]


class JudgeSettings(_Settings):
    kind: Literal["judge"]
    mode: Literal["pairwise", "grade"]
    model: Name
    base_url: BaseUrl | None = None
    api_key_env: Name | None = None
    reference_expert: Name | None = None
    template: Path | None = None
    options: Options = {"temperature": 0, "max_tokens": 1024}

    @model_validator(mode="after")
    def _fits_together(self) -> JudgeSettings:
        if (self.mode == "pairwise") != (self.reference_expert is not None):
            raise ValueError("reference_expert is required with mode pairwise and refused with other modes")
        return self


class ConsensusSettings(_Settings):
    kind: Literal["consensus"]
    compare: Literal["text", "number", "choice"] = "text"
    ignore: list[Literal["case", "whitespace", "punctuation", "articles"]] = ["case", "whitespace"]
    letters: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2,26}$")] = "ABCD"
    families: dict[Name, Annotated[list[Name], Field(min_length=2)]] = {}


SingleSettings = ExactSettings | NumericSettings | ChoiceSettings | RegexSettings | FunctionSettings


class CertaintySettings(_Settings):
    kind: Literal["certainty"]
    labels: Annotated[SingleSettings, Field(discriminator="kind")] | None = None


ScorerSettings = Annotated[
    SingleSettings | JudgeSettings | ConsensusSettings | CertaintySettings,
    Field(discriminator="kind"),
]


class CollectConfig(_Settings):
    """The whole of `configs/collect.yaml`; that file explains every key."""

    base_url: BaseUrl = "http://127.0.0.1:8080/v1"
    api_key_env: Name | None = None
    experts: Annotated[list[AskedExpert], Field(min_length=1)]
    request: RequestSettings = RequestSettings()
    answer_column: Name = "answer"
    answer_after: Annotated[str, Field(min_length=1)] | None = None
    scorer: ScorerSettings

    @property
    def bases(self) -> dict[str, str]:
        """The experts that are another's presets, each with that one."""
        return {expert.name: expert.of for expert in self.experts if expert.of is not None}

    @property
    def expert_names(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.experts)

    @model_validator(mode="after")
    def _fits_together(self) -> CollectConfig:
        names = self.expert_names
        if len(set(names)) < len(names):
            raise ValueError("experts: a name occurs twice")
        for expert in self.experts:
            if expert.of is not None and expert.of not in names:
                raise ValueError(
                    f"experts: {expert.name} is of {expert.of!r}, which is not an expert ({', '.join(names)})"
                )
        reference = self.scorer.reference_expert if isinstance(self.scorer, JudgeSettings) else None
        if reference is not None and reference not in names:
            raise ValueError(f"scorer.reference_expert: {reference!r} is not an expert ({', '.join(names)})")
        if isinstance(self.scorer, ConsensusSettings):
            self._check_consensus(self.scorer)
        return self

    def _check_consensus(self, scorer: ConsensusSettings) -> None:
        if len(self.experts) < 3:
            raise ValueError(f"scorer.consensus: needs three experts or more, not {len(self.experts)}: no two others")
        for family, members in scorer.families.items():
            for name in members:
                if name not in self.expert_names:
                    known = ", ".join(self.expert_names)
                    raise ValueError(f"scorer.families.{family}: {name!r} is not an expert ({known})")


def read_collect_config(path: Path, base_url: str | None = None, scorer_kind: str | None = None) -> CollectConfig:
    """The settings in a YAML file, the template's path made absolute; `base_url` replaces the one at the top.

    `scorer_kind` replaces the scorer by one of that kind with default settings, unless the file has that kind.

    Raises ConfigError.
    """

    def with_scorer(raw: dict[str, Any]) -> dict[str, Any]:
        own = raw.get("scorer")
        is_other = scorer_kind is not None and not (isinstance(own, dict) and own.get("kind") == scorer_kind)
        return {**raw, "scorer": {"kind": scorer_kind}} if is_other else raw

    config = read_settings(path, CollectConfig, "`coe config --example collect`", with_scorer)
    if base_url is not None:
        config = config.model_copy(update={"base_url": base_url_option("--base-url", base_url)})
    scorer = config.scorer
    if not isinstance(scorer, JudgeSettings) or scorer.template is None:
        return config
    template = path.resolve().parent / scorer.template
    return config.model_copy(update={"scorer": scorer.model_copy(update={"template": template})})


def api_key(variable: str | None, key: str = "api_key_env") -> str | None:
    """The value of the environment variable that a setting names.

    Raises ConfigError, naming the setting's `key`, if it is not set or invalid in a header.
    """
    return None if variable is None else clean_secret(os.environ.get(variable), key, variable)


def proxy_for(address: str) -> Proxy | None:
    """The proxy that the environment names for an address. Raises ConfigError for one that cannot be used."""
    return Proxies.of(os.environ).for_address(address)


def base_url_option(name: str, base_url: str) -> str:
    """The address of a command's option. Raises ConfigError naming the option."""
    try:
        return parse_base_url(base_url)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Target:
    """`name` is the expert's name in the outcomes, `model` its name at the endpoint."""

    name: str
    base_url: str
    model: str
    api_key_env: str | None
    options: Mapping[str, Any]
    key_setting: str = "api_key_env"  # which setting names the variable

    def asked(self, messages: Sequence[Message]) -> str:
        """The fingerprint of a request, without the address: a service may move."""
        return fingerprint(list(messages), self.model, self.options)


def expert_targets(config: CollectConfig) -> tuple[Target, ...]:
    """The experts in the config's order. One with an address of its own never gets the service's key."""
    return tuple(
        Target(
            name=expert.name,
            base_url=expert.base_url or config.base_url,
            model=expert.model or expert.name,
            api_key_env=expert.api_key_env or (None if expert.base_url else config.api_key_env),
            options={**config.request.options, **expert.options},
            key_setting=f"experts.{expert.name}.api_key_env" if expert.api_key_env else "api_key_env",
        )
        for expert in config.experts
    )


def judge_target(config: CollectConfig, judge: JudgeSettings) -> Target:
    """The judge as a target, by the same rules."""
    return Target(
        name="judge",
        base_url=judge.base_url or config.base_url,
        model=judge.model,
        api_key_env=judge.api_key_env or (None if judge.base_url else config.api_key_env),
        options=judge.options,
        key_setting="scorer.api_key_env" if judge.api_key_env else "api_key_env",
    )


def fingerprint(*parts: object) -> str:
    """A hash of the parts, stable across runs: it finds requests that were sent before."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]
