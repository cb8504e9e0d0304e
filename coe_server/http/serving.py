"""The state behind the endpoints: router, cache, keys, decision log."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Protocol

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.outlooks import Outlook
from coe_server.cluster.experts import BestNode
from coe_server.cluster.nodes import Nodes
from coe_server.engines.engine import TellsLength
from coe_server.http.apis import AUTO
from coe_server.http.auth import Guard, Reach
from coe_server.http.availability import Here, WithNodes, told_length
from coe_server.http.bodies.presets import Preset
from coe_server.http.bodies.reader import BodyReader
from coe_server.http.bodies.uploads import UploadLimits, Uploads
from coe_server.http.learner import Learner
from coe_server.http.logprobs import Tellers
from coe_server.http.previous_responses import MadeResponses
from coe_server.http.tracing.trace import NoTracing, Tracing
from coe_server.http.traffic import Traffic
from coe_server.journal.journal import Journal
from coe_server.keys import Key
from coe_server.metrics import Telemetry
from coe_server.routing.capabilities import Capabilities, shorter
from coe_server.routing.conversation import Conversation, Sessions
from coe_server.routing.decision import Availability, BudgetReading, RouteOptions, RoutingDecision
from coe_server.routing.embeddings import Embedder
from coe_server.routing.router import Router

__all__ = ["AUTO", "Decides", "Service", "Serving"]


class Decides(Protocol):
    """A router: turns a conversation and options into a decision. It computes only and never blocks."""

    @property
    def version(self) -> str: ...

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives a caller may name."""

    def route(
        self, conversation: Conversation, options: RouteOptions, availability: Mapping[str, Availability]
    ) -> RoutingDecision: ...

    def price(self, objective: str) -> BudgetReading:
        """An objective's budget, spending and multiplier now."""

    def context_tokens(self, expert: str) -> int | None:
        """An expert's context length in tokens; None if unknown."""

    def spending(self, decision: RoutingDecision) -> AbstractContextManager[Callable[[], None]]:
        """A context while a decision is carried out. The function it yields is called once the answer begins."""


class Compares(Protocol):
    """Compares answers with those of another expert, in the background."""

    def listen(self, request: Any, decision: RoutingDecision) -> Any:
        """The routed request, which keeps its answer if that is to be compared."""

    def offer(self, request: Any, decision: RoutingDecision) -> None:
        """Compare the request's complete answer. Never waits."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Comparing:
    """Compare this share of answers with another expert's; `judge` scores both. Remote experts only if `remote`."""

    share: float
    judge: str
    remote: bool


@dataclass(frozen=True, slots=True)
class Serving:
    """The state that a reload replaces as a whole, so that no request sees parts of two configurations."""

    router: Decides
    default_objective: str
    embedder: Embedder | None = None  # for a router whose features need embeddings
    max_body_bytes: int = 32 * 2**20
    bodies_bytes: int = 512 * 2**20  # of all requests in progress; one key may hold a quarter
    body_seconds: float = 60.0
    keepalive_seconds: float = 10.0
    uploads: UploadLimits = field(default_factory=UploadLimits)
    quality: dict[str, Any] | None = None  # of the router, as its artifact's evaluation measured it
    traffic: Traffic | None = None  # for a router that knows the statistics of its training prompts
    aliases: Mapping[str, str] = field(default_factory=dict)  # further model names -> name
    shadow: Decides | None = None  # decides beside the router; its decisions are only logged
    split: Sequence[tuple[Decides, float]] = ()  # routers that serve a share of the conversations
    compare: Comparing | None = None
    routes_file: Path | None = None  # of a router that is made from routes
    tellers: Tellers = field(default_factory=Tellers)  # of log-probabilities

    def router_for(self, session: bytes | None, objective: str | None) -> Decides:
        """The router of a conversation: by the hash of its session, so that later turns have the same."""
        if not self.split:
            return self.router
        place = int.from_bytes((session or os.urandom(8))[:8]) / 2**64
        for other, share in self.split:
            if place < share:
                return other if objective is None or objective in other.objectives else self.router
            place -= share
        return self.router


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What a node calls itself to a front; `process` differs from start to start."""

    name: str
    process: str


@dataclass(slots=True)
class Service:
    """Everything that the HTTP layer needs. `engine_models`: expert -> its model's name at its engine.

    A reload changes the tables of experts in place. `leaving`: names in them that no new request may use, since they
    were removed; requests that came before may still need them.
    """

    serving: Serving
    cache: ExpertCache
    journal: Journal | None  # None: decisions are not kept
    engine_models: dict[str, str]
    guard: Guard
    started: int  # seconds since the epoch
    telemetry: Telemetry
    presets: dict[str, Preset] = field(default_factory=dict)
    log_prompts: bool = False
    lengths: dict[str, TellsLength] = field(default_factory=dict)  # engines that tell theirs, by expert
    sessions: Sessions = field(default_factory=Sessions)
    made: MadeResponses = field(default_factory=MadeResponses)
    bodies: BodyReader = field(default_factory=BodyReader)
    uploads: Uploads = field(default_factory=lambda: Uploads(Path(gettempdir())))
    tracing: Tracing = field(default_factory=NoTracing)
    learner: Learner | None = None
    comparer: Compares | None = None
    capabilities: dict[str, Capabilities] = field(default_factory=dict)  # of local experts, as configured
    node: NodeIdentity | None = None  # set on a node: it tells fronts what it has
    nodes: Nodes | None = None  # set on a front
    leaving: set[str] = field(default_factory=set)
    _on_nodes: dict[str, tuple[BestNode, Availability]] = field(default_factory=dict)
    _here: dict[str, tuple[Outlook, Availability]] = field(default_factory=dict)

    @property
    def served(self) -> Collection[str]:
        """The experts that a new request may name."""
        return [name for name in self.engine_models if name not in self.leaving] if self.leaving else self.engine_models

    def model_of(self, expert: str) -> str:
        """The name of its model at its engine."""
        return self.engine_models.get(expert, expert)

    def model_at(self, expert: str, leased: str) -> str:
        """The name of its model at the engine of `leased`: a reload may have given a preset another base meanwhile."""
        is_moved = expert in self.presets and self.cache.slots.bases.get(expert) != leased
        return self.model_of(leased if is_moved else expert)

    def reach(self, key: Key | None) -> Reach:
        """The experts and objectives that this key may name."""
        serving = self.serving
        objectives, default = serving.router.objectives, serving.default_objective
        return Reach.of(key, self.served, objectives, default, serving.aliases)

    def availability(self) -> Mapping[str, Availability]:
        """Each expert by name, as things are now: to be read before the next await."""
        outlooks, bases = self.cache.waits.outlooks(), self.cache.slots.bases
        here = Here(outlooks, self.lengths, bases, self.leaving, self._here)
        if self.nodes is None:
            return here
        return WithNodes(here, self.nodes, self.cache.slots, self.trained, self._on_nodes)

    @property
    def trained(self) -> tuple[str, ...]:
        """The experts that the router knows from training, served or not."""
        router = self.serving.router
        return router.expert_names if isinstance(router, Router) else ()

    def is_on_nodes(self, expert: str) -> bool:
        """True if nodes run this expert, and not this server."""
        own = self.cache.slots.get(expert)
        return self.nodes is not None and own is not None and own.expert.on_nodes

    def context_tokens(self, expert: str) -> int | None:
        """How many tokens an expert holds: as it is configured or trained, or as its engine tells if that is less."""
        if self.nodes is not None and self.is_on_nodes(expert):
            return shorter(self.serving.router.context_tokens(expert), self.nodes.best[expert].longest_tokens)
        told = told_length(self.lengths, self.cache.slots.bases.get(expert, expert))
        return shorter(self.serving.router.context_tokens(expert), told)
