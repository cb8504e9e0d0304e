"""Settings of the router: where its scores come from, what it learns and hands over, and the routers beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from coe_server.config.addresses import BaseUrl
from coe_server.config.types import Settings


class EmbeddingSettings(Settings):
    """The embedder of prompts: an endpoint, or without `base_url` a model in this process."""

    model: str
    base_url: BaseUrl | None = None
    api_key_env: str | None = None
    timeout_seconds: float = Field(default=5.0, gt=0)


def _off(value: object) -> object:
    """YAML reads `off` as false."""
    return "off" if value is False else value


Exploring = Literal["off", "learn"] | Annotated[float, Field(gt=0.0, le=0.5)]


class HandoverRule(Settings):
    tokens: Annotated[int, Field(ge=1, le=4096)] | Literal["all"] | None = None
    at_most: int = Field(default=1, ge=1, le=8)
    margin: float | None = Field(default=None, ge=-1.0, le=1.0)
    score_per_second: float = Field(default=0.01, ge=0.0, le=1.0)


class HandoverSettings(HandoverRule):
    objectives: dict[str, HandoverRule | None] = Field(default={})

    def under(self, objective: str) -> HandoverRule | None:
        """The rule of this objective, what it leaves open as for all; None if nothing is handed over under it."""
        own = self.objectives.get(objective, self)
        if own is None or own is self:
            return own
        return self.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


class RouterSettings(Settings):
    artifact: Path | None = None
    routes: Path | None = None
    objective: str = "quality"
    exploration: Annotated[Exploring, BeforeValidator(_off)] = "off"
    handover: HandoverSettings | None = None
    compare: float = Field(default=0.0, ge=0.0, le=1.0)
    judge: str | None = None
    compare_remote: bool = False
    shadow: Path | None = None
    split: dict[Path, Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(default={})
    residency_tolerance: float = Field(default=0.0, ge=0.0, le=1.0)
    budget_window: int = Field(default=1000, ge=0, le=10_000)
    failing_probes: Literal["warn", "refuse"] = "warn"
    embeddings: EmbeddingSettings | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> RouterSettings:
        if (self.artifact is None) == (self.routes is None):
            raise ValueError("set either artifact or routes")
        if sum(self.split.values()) >= 1.0:
            raise ValueError("split: the shares leave nothing for the router itself; together they must be below 1")
        if self.compare > 0.0 and self.judge is None:
            raise ValueError("compare: needs judge, the expert that scores both answers")
        if self.handover is not None and self.exploration != "off":
            raise ValueError(
                "handover: a drawn expert's ratings would be of its sure answers only; set exploration: off"
            )
        return self

    def in_folder(self, absolute: Callable[[Path], Path]) -> Self:
        """The settings with absolute paths."""
        places = {"artifact": self.artifact, "routes": self.routes, "shadow": self.shadow}
        return self.model_copy(
            update={name: path and absolute(path) for name, path in places.items()}
            | {"split": {absolute(path): share for path, share in self.split.items()}}
        )
