"""What the endpoints work with: the router, the cache, and how a chat request becomes a decision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coe_server.cache.expert_cache import ExpertCache
from coe_server.errors import EmbeddingUnavailable, RequestError, UnknownModel
from coe_server.http.body import Body
from coe_server.routing.conversation import Conversation, read_messages
from coe_server.routing.decision import (
    Availability,
    BudgetReading,
    Priority,
    Residency,
    RouteOptions,
    RoutingDecision,
)
from coe_server.routing.embedder import Embedder, with_embeddings
from coe_server.telemetry import EMBEDDING_FAILURES, Telemetry

AUTO = "auto"
MOST_MESSAGES = 10_000

logger = logging.getLogger(__name__)


class Decides(Protocol):
    """A router: text and options in, a decision out. It computes, it does not wait."""

    @property
    def version(self) -> str: ...

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives a caller may name."""

    def route(
        self, conversation: Conversation, options: RouteOptions, availability: Mapping[str, Availability]
    ) -> RoutingDecision: ...

    def price(self, objective: str) -> BudgetReading:
        """What an objective's budget, its spending and its multiplier are now."""

    def spending(self, decision: RoutingDecision) -> AbstractContextManager[Callable[[], None]]:
        """Held while a decision is followed; what it gives is called once an expert began to answer."""


class CoeOptions(BaseModel):
    """What a caller may say under `coe` in the body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    allow: list[str] | None = Field(default=None, min_length=1)
    objective: str | None = None
    max_active_params_b: float | None = Field(default=None, gt=0)
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    priority: Priority = "normal"


@dataclass(frozen=True, slots=True)
class Service:
    """Everything the HTTP layer is given. `engine_models` says under which name each engine knows its model."""

    router: Decides
    cache: ExpertCache
    engine_models: Mapping[str, str]
    default_objective: str
    max_body_bytes: int
    admin: bool
    started: int  # seconds since the epoch
    telemetry: Telemetry
    log_prompts: bool = False
    embedder: Embedder | None = None  # where the router's features need what `route` cannot compute

    @property
    def models(self) -> tuple[str, ...]:
        """Every name a caller may put under `model`."""
        objectives = tuple(f"{AUTO}:{objective}" for objective in self.router.objectives)
        return ((AUTO,) if objectives else ()) + objectives + tuple(self.engine_models)

    async def decide(self, body: Body, options: RouteOptions) -> RoutingDecision:
        """The decision for one chat request, given where every expert is now."""
        conversation = _conversation(body.fields)
        if self.embedder is not None and options.expert is None:
            conversation = await self._embedded(conversation, self.embedder)
        return self.router.route(conversation, options, self.availability())

    async def _embedded(self, conversation: Conversation, embedder: Embedder) -> Conversation:
        """With embeddings; without them where none are to be had: the prompt then counts as out of domain."""
        try:
            return await with_embeddings(conversation, embedder)
        except EmbeddingUnavailable as error:
            self.telemetry.count(EMBEDDING_FAILURES)
            logger.warning("a prompt is routed without its embedding: %s", error)
            return conversation

    def availability(self) -> dict[str, Availability]:
        return {
            expert.name: Availability(cast(Residency, expert.residency), expert.predicted_wait_seconds, expert.failure)
            for expert in self.cache.status()
        }

    def options(self, body: Body) -> RouteOptions:
        """What the body asks for besides the conversation."""
        coe = _coe_options(body.fields.get("coe", {}))
        expert, objective = self._read_model(body.fields.get("model", AUTO))
        unknown = sorted(set(coe.allow or ()) - set(self.engine_models))
        if unknown:
            raise RequestError(
                f"coe.allow names '{unknown[0]}'; the experts are {', '.join(self.engine_models)}", "coe.allow"
            )
        return RouteOptions(
            expert=expert,
            objective=coe.objective or objective or self.default_objective,
            allow=frozenset(coe.allow) if coe.allow else None,
            max_active_params_b=coe.max_active_params_b,
            min_confidence=coe.min_confidence,
            priority=coe.priority,
        )

    def _read_model(self, model: object) -> tuple[str | None, str | None]:
        """(expert, objective) that a model name stands for."""
        if not isinstance(model, str):
            raise RequestError("model must be a string", "model")
        if model not in self.models:
            raise UnknownModel(f"there is no model '{model}'; there are {', '.join(self.models)}", "model")
        if model in self.engine_models:
            return model, None
        return None, model.partition(":")[2] or None


def _coe_options(given: object) -> CoeOptions:
    try:
        return CoeOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(("coe", *map(str, first["loc"])))
        if first["type"] == "extra_forbidden":
            raise RequestError(f"{key}: there is no such option ({', '.join(CoeOptions.model_fields)})", key) from error
        raise RequestError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}", key) from error


def _conversation(fields: Mapping[str, Any]) -> Conversation:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with at least one message", "messages")
    if len(messages) > MOST_MESSAGES:
        raise RequestError(f"messages has {len(messages)} entries; {MOST_MESSAGES} are allowed", "messages")
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens") or 0
    return read_messages(messages, bool(fields.get("tools")), limit if isinstance(limit, int) else 0)
