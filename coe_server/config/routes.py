"""Reads and checks `routes.yaml`: experts by route, with examples, descriptions and rules.

A mistake is one sentence with key, value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import regex
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from coe_server.config.addresses import BaseUrl
from coe_server.config.file import read_settings_file
from coe_server.config.mistakes import first_mistake
from coe_server.config.types import ServedName
from coe_server.errors import ConfigError

DEFAULT_ROUTE = "default"
GATES_NAME = "general"
MOST_EXAMPLES = 1_000  # of all routes together: the fit takes seconds and 260 MB
LONGEST_EXAMPLES_BYTES = 1 << 20
EXPLAINED_IN = "`coe config --example routes`"


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _an_expression(text: str) -> str:
    try:
        regex.compile(text, regex.IGNORECASE)
    except regex.error as error:
        raise ValueError(f"{text!r} is invalid: {error}") from error
    return text


Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Word = Annotated[str, Field(min_length=1, max_length=1_000)]
Words = Annotated[list[Word], BeforeValidator(_as_list)]
Expressions = Annotated[list[Annotated[Word, AfterValidator(_an_expression)]], BeforeValidator(_as_list)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MatchSettings(_Settings):
    """A request matches if every given kind of condition matches with any of its values."""

    words: Words = []
    system_prompt: Words = []
    path: Words = []
    key: Words = []
    regex: Expressions = []

    @model_validator(mode="after")
    def _says_something(self) -> MatchSettings:
        if not any((self.words, self.system_prompt, self.path, self.key, self.regex)):
            raise ValueError(f"a match needs one of {', '.join(MatchSettings.model_fields)}")
        return self


class _Target(_Settings):
    expert: ServedName | None = None
    experts: Annotated[list[ServedName], Field(min_length=1)] | None = None
    examples: list[Text] = []
    examples_file: Path | None = None
    description: Text | None = None

    @property
    def names(self) -> list[str]:
        """The experts that answer, in order of preference."""
        return list(self.experts or [str(self.expert)])

    @property
    def texts(self) -> list[str]:
        """The examples, including the description."""
        return [*self.examples, *([self.description] if self.description else [])]

    @model_validator(mode="after")
    def _names_experts(self) -> _Target:
        if (self.expert is None) == (self.experts is None):
            raise ValueError("set either expert or experts")
        if len(set(self.names)) < len(self.names):
            raise ValueError("experts: a name occurs twice")
        return self


Target = TypeVar("Target", bound=_Target)


class RouteSettings(_Target):
    """One route. `otherwise` answers if its expert cannot. `tolerance`: score that a loaded expert may be worse."""

    match: MatchSettings | None = None
    otherwise: ServedName | None = None
    tolerance: Share = 0.0


class DefaultSettings(_Target):
    """The route of prompts that resemble no other route; examples are optional."""


class RatedExpert(_Settings):
    """Optional properties of an expert; `ratings`: route -> share, each counted as `prior_prompts` prompts."""

    ratings: dict[str, Share] = {}
    active_params_b: Annotated[float, Field(gt=0.0)] | None = None


class BenchmarkSettings(_Settings):
    """Published results on prompts like a route's: expert -> share. Only differences between them count."""

    route: ServedName
    shares: Annotated[dict[ServedName, Share], Field(min_length=2)]

    def difference(self, expert: str) -> float:
        """How far an expert is from the mean of this benchmark."""
        return self.shares[expert] - sum(self.shares.values()) / len(self.shares)


class EmbeddingFeatures(_Settings):
    """The embedder used in addition to n-grams: an endpoint, or without `base_url` a model here."""

    model: Text
    base_url: BaseUrl | None = None
    api_key_env: str | None = None


def _as_default(value: object) -> object:
    return {"expert": value} if isinstance(value, str) else value


class RoutesFile(_Settings):
    """The content of `routes.yaml`, including the examples from other files."""

    routes: Annotated[dict[ServedName, RouteSettings], Field(min_length=1)]
    default: Annotated[DefaultSettings, BeforeValidator(_as_default)]
    experts: dict[ServedName, RatedExpert] = {}
    benchmarks: dict[ServedName, BenchmarkSettings] = {}
    features: EmbeddingFeatures | None = None
    prior_prompts: Annotated[int, Field(ge=1, le=10_000)] = 20

    @property
    def targets(self) -> dict[str, RouteSettings | DefaultSettings]:
        """All routes by name, the default last."""
        return {**self.routes, DEFAULT_ROUTE: self.default}

    @property
    def expert_names(self) -> list[str]:
        """All experts named in the file, in order."""
        named = [*(name for target in self.targets.values() for name in target.names)]
        named += [route.otherwise for route in self.routes.values() if route.otherwise is not None]
        return list(dict.fromkeys([*named, *self.experts]))

    @model_validator(mode="after")
    def _fits_together(self) -> RoutesFile:
        if taken := {DEFAULT_ROUTE, GATES_NAME} & set(self.routes):
            raise ValueError(f"routes.{min(taken)}: this name is reserved; rename the route")
        for name, route in self.routes.items():
            if not (route.texts or route.examples_file or route.match):
                raise ValueError(f"routes.{name}: needs examples, examples_file, a description or a match")
            if route.tolerance > 0.0 and not self.is_rated(name):
                raise ValueError(f"routes.{name}.tolerance: needs scores; give an expert a rating of this route")
        if "auto" in self.expert_names:
            raise ValueError("the name 'auto' is the router's; name an expert")
        for expert, known in self.experts.items():
            if unknown := [name for name in known.ratings if name not in self.targets]:
                there = ", ".join(self.targets)
                raise ValueError(f"experts.{expert}.ratings: there is no route {unknown[0]!r} ({there})")
        self._check_benchmarks()
        return self

    def _check_benchmarks(self) -> None:
        for name, known in self.benchmarks.items():
            if known.route not in self.targets:
                raise ValueError(
                    f"benchmarks.{name}.route: there is no route {known.route!r} ({', '.join(self.targets)})"
                )
            if unknown := [expert for expert in known.shares if expert not in self.expert_names]:
                there = ", ".join(self.expert_names)
                raise ValueError(f"benchmarks.{name}.shares: there is no expert {unknown[0]!r} ({there})")

    def is_rated(self, route: str) -> bool:
        """True if any expert has a rating for this route, or there is a benchmark of it."""
        return any(route in known.ratings for known in self.experts.values()) or bool(self.benchmarks_of(route))

    def benchmarks_of(self, route: str) -> list[BenchmarkSettings]:
        """The benchmarks of a route."""
        return [known for known in self.benchmarks.values() if known.route == route]


def read_routes(path: Path) -> RoutesFile:
    """Read a routes file and its files of examples. Raises ConfigError naming key, value and what is allowed."""
    raw = read_settings_file(path, EXPLAINED_IN)
    try:
        found = RoutesFile.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_mistake(error, raw, RoutesFile)}") from error
    routes = {name: _with_examples(route, path, f"routes.{name}") for name, route in found.routes.items()}
    found = found.model_copy(update={"routes": routes, "default": _with_examples(found.default, path, DEFAULT_ROUTE)})
    if (count := sum(len(target.texts) for target in found.targets.values())) > MOST_EXAMPLES:
        raise ConfigError(f"{path}: has {count:,} examples, more than {MOST_EXAMPLES:,}; use `coe-train fit`")
    return found


def _with_examples(target: Target, path: Path, key: str) -> Target:
    if target.examples_file is None:
        return target
    lines = list(_lines(path.resolve().parent / target.examples_file, f"{path}: {key}.examples_file"))
    return target.model_copy(update={"examples": [*target.examples, *lines]})


def _lines(file: Path, key: str) -> Iterator[str]:
    """One example per line; empty lines are skipped."""
    try:
        with file.open("rb") as opened:
            data = opened.read(LONGEST_EXAMPLES_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{key}: {file} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {file} is not UTF-8 ({error})") from error
    if len(data) > LONGEST_EXAMPLES_BYTES:
        raise ConfigError(f"{key}: {file} is longer than {LONGEST_EXAMPLES_BYTES:,} bytes")
    if not (found := [line.strip() for line in text.splitlines() if line.strip()]):
        raise ConfigError(f"{key}: {file} has no example; write one per line")
    yield from found
