"""What the endpoints work with: the router, the cache, and how a request becomes a decision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.queue import Owner
from coe_server.errors import EmbeddingUnavailable, Forbidden, first_line
from coe_server.http.answer.trace import NoTracing, Tracing
from coe_server.http.chronicle import Chronicle
from coe_server.http.door.guard import Guard
from coe_server.http.door.incoming import Incoming
from coe_server.http.door.reach import Reach
from coe_server.http.fan_out import require_fan_out
from coe_server.http.made_responses import FIELD as PREVIOUS
from coe_server.http.made_responses import MadeResponses
from coe_server.http.options import AUTO, require_expert
from coe_server.http.question import Question
from coe_server.http.traffic import Traffic
from coe_server.keys import Key
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, BudgetReading, Residency, RouteOptions, RoutingDecision
from coe_server.routing.embedder import Embedder, with_embeddings
from coe_server.routing.sessions import Sessions, session_key
from coe_server.telemetry import EMBEDDING_FAILURES, Telemetry

__all__ = ["AUTO", "Asked", "Decides", "Service", "Serving"]

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

    def context_tokens(self, expert: str) -> int | None:
        """How many tokens an expert holds; None where that is not known."""

    def spending(self, decision: RoutingDecision) -> AbstractContextManager[Callable[[], None]]:
        """Held while a decision is followed; what it gives is called once an expert began to answer."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What may change while the server runs: replaced as a whole, so that no request sees half of each."""

    router: Decides
    default_objective: str
    embedder: Embedder | None = None  # where the router's features need what `route` cannot compute
    max_body_bytes: int = 32 * 2**20
    bodies_bytes: int = 512 * 2**20  # of all requests in progress together; a quarter of it of one key's
    body_seconds: float = 60.0
    keepalive_seconds: float = 10.0
    quality: dict[str, Any] | None = None  # what the router was measured to be worth
    traffic: Traffic | None = None  # where the router knows what its training prompts looked like
    aliases: Mapping[str, str] = field(default_factory=dict)  # further names, and what each stands for


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as routing sees it, with the router that will decide it, also if another one is loaded meanwhile."""

    serving: Serving
    conversation: Conversation
    options: RouteOptions
    session: bytes | None = None
    may_be_silent: bool = False  # an empty text may be the whole answer
    fan_out: int = 1  # how many answers it asks for at once


@dataclass(slots=True)
class Service:
    """Everything the HTTP layer is given. `engine_models` says under which name each engine knows its model."""

    serving: Serving
    cache: ExpertCache
    chronicle: Chronicle
    engine_models: Mapping[str, str]
    guard: Guard  # who may come in
    started: int  # seconds since the epoch
    telemetry: Telemetry
    log_prompts: bool = False
    sessions: Sessions = field(default_factory=Sessions)
    made: MadeResponses = field(default_factory=MadeResponses)
    incoming: Incoming = field(default_factory=Incoming)
    tracing: Tracing = field(default_factory=NoTracing)

    def reach(self, key: Key | None) -> Reach:
        """What a caller with this key may name."""
        serving = self.serving
        objectives, default = serving.router.objectives, serving.default_objective
        return Reach.of(key, self.engine_models, objectives, default, serving.aliases)

    async def asked(self, question: Question, key: Key | None) -> Asked:
        """How a question is to be routed. Raises RequestError naming the field that is wrong."""
        serving, reach, owner = self.serving, self.reach(key), key.name if key else None
        surface, fields, conversation = question.surface, question.body.fields, question.conversation
        self._require_fan_out(question.fan_out, key)
        options = reach.options(fields)
        _require_permission(options, key)
        if surface.endpoint == "responses":
            options = self.made.continued(fields.get(PREVIOUS), options, owner)
        if not surface.routed:
            require_expert(options, surface.path, reach.experts)
        if serving.embedder is not None and options.expert is None:
            conversation = await self._embedded(conversation, serving.embedder)
        session = session_key(conversation, options, owner)
        kept = self.sessions.last(session, conversation, options)
        options = replace(options, kept=kept) if kept else options
        return Asked(serving, conversation, options, session, question.may_be_silent, question.fan_out)

    def _require_fan_out(self, asked: int, key: Key | None) -> None:
        server_limit = self.cache.limits.max_fan_out
        require_fan_out(asked, server_limit, key.name if key else None, key.max_fan_out if key else None)

    def decide(self, asked: Asked) -> RoutingDecision:
        """The decision, given where every expert is now."""
        return asked.serving.router.route(asked.conversation, asked.options, self.availability())

    async def _embedded(self, conversation: Conversation, embedder: Embedder) -> Conversation:
        """With embeddings; without them where none are to be had: the prompt then counts as out of domain."""
        try:
            return await with_embeddings(conversation, embedder)
        except EmbeddingUnavailable as error:
            self.telemetry.count(EMBEDDING_FAILURES)
            logger.warning("a prompt is routed without its embedding: %s", error)
            return conversation

    def owner(self, key: Key | None) -> Owner | None:
        """What leases are asked for by, with its share of the queues."""
        return None if key is None else Owner(key.name, self.guard.keyring.share(key))

    def has_more_room(self, than: str, expert: str) -> bool:
        """May an expert take what is too long for another? Yes, unless it is known to hold no more tokens."""
        router = self.serving.router
        ours, theirs = router.context_tokens(expert), router.context_tokens(than)
        return ours is None or theirs is None or ours > theirs

    def availability(self) -> dict[str, Availability]:
        """Each expert by name; of a failure what a caller may read."""
        return {
            name: Availability(
                cast(Residency, now.residency),
                now.predicted_wait_seconds,
                first_line(now.failure) if now.failure is not None else None,
                now.returns_seconds,
            )
            for name, now in self.cache.waits.outlooks().items()
        }


def _require_permission(options: RouteOptions, key: Key | None) -> None:
    """Raises Forbidden where a key asks to overtake others and may not."""
    if options.priority == "high" and key is not None and not (key.priority or key.admin):
        raise Forbidden(
            f"key '{key.name}' may not ask for coe.priority 'high'; leave it out, or have a key made that may "
            "(coe keys add --priority)"
        )
