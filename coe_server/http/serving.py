"""The state behind the endpoints: router, cache, keys, decision log; and drift detection of the traffic."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Protocol, cast

import numpy as np

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.slot import Slot
from coe_server.cache.wait_times import Outlook
from coe_server.cluster.nodes import BestNode, Nodes
from coe_server.config.types import MODALITIES
from coe_server.engines.engine import TellsLength
from coe_server.errors import first_line
from coe_server.http.apis import AUTO
from coe_server.http.auth import Guard, Reach
from coe_server.http.bodies.presets import Preset
from coe_server.http.bodies.reader import BodyReader
from coe_server.http.bodies.uploads import UploadLimits, Uploads
from coe_server.http.learner import Learner
from coe_server.http.logprobs import Tellers
from coe_server.http.previous_responses import MadeResponses
from coe_server.http.tracing.trace import NoTracing, Tracing
from coe_server.journal.drift import OUTSIDE, Drift, DriftWatch, Reference
from coe_server.journal.journal import Journal
from coe_server.keys import Key
from coe_server.metrics import Telemetry
from coe_server.routing.artifact import HeldOut
from coe_server.routing.capabilities import Capabilities, shorter
from coe_server.routing.conversation import Conversation, Endpoint, Sessions
from coe_server.routing.decision import Availability, BudgetReading, Residency, RouteOptions, RoutingDecision
from coe_server.routing.embeddings import Embedder
from coe_server.routing.router import Router

__all__ = ["AUTO", "Decides", "Service", "Serving"]

logger = logging.getLogger(__name__)


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
        here = _Availabilities(outlooks, self.lengths, bases, self.leaving, self._here)
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
            return shorter(self.serving.router.context_tokens(expert), self.nodes.best(expert).longest_tokens)
        told = _told(self.lengths, self.cache.slots.bases.get(expert, expert))
        return shorter(self.serving.router.context_tokens(expert), told)


class _Availabilities(Mapping[str, Availability]):
    """The cache's outlooks in the router's words; of a failure only its first line, which callers may read.

    `bases`: the experts that share another's engine, each with that one, whose outlook is theirs. Those `leaving` are
    absent. `told`: kept from request to request, by expert with its engine.
    """

    def __init__(
        self,
        outlooks: Mapping[str, Outlook],
        lengths: Mapping[str, TellsLength],
        bases: Mapping[str, str],
        leaving: Collection[str],
        told: dict[str, tuple[Outlook, Availability]],
    ) -> None:
        self._outlooks = outlooks
        self._lengths = lengths
        self._bases = bases
        self._leaving = leaving
        self._told = told

    def __getitem__(self, name: str) -> Availability:
        if name in self._leaving:
            raise KeyError(name)
        own = self._bases.get(name, name)
        outlook, length = self._outlooks[own], _told(self._lengths, own)
        before, there = self._told.get(own, (None, None))
        if before is not outlook or there is None or there.longest_tokens != length:
            self._told[own] = outlook, (there := _available(outlook, length))
        return there

    def __iter__(self) -> Iterator[str]:
        every = (*self._outlooks, *self._bases)
        return iter([name for name in every if name not in self._leaving] if self._leaving else every)

    def __len__(self) -> int:
        return len(tuple(iter(self)))


class WithNodes(Mapping[str, Availability]):
    """The availability of local experts, and of those on nodes as the best node has them.

    An expert of the router that no node has told of yet is served, but unavailable. `told`: kept from request to
    request, by expert; a router with 150 experts looks at all of them.
    """

    def __init__(
        self,
        here: Mapping[str, Availability],
        nodes: Nodes,
        slots: Mapping[str, Slot],
        trained: Sequence[str],
        told: dict[str, tuple[BestNode, Availability]],
    ) -> None:
        self._here = here
        self._nodes = nodes
        self._slots = slots
        self._told = told
        self._missing = [name for name in trained if name not in slots and name not in here]

    def __getitem__(self, name: str) -> Availability:
        slot = self._slots.get(name)
        if slot is not None and slot.expert.on_nodes and not slot.leaves:
            best = self._nodes.best(name)
            told = self._told.get(name)
            if told is None or told[0] is not best:
                self._told[name] = told = best, _at(best)
            return told[1]
        if name in self._missing:
            return Availability("disk", 0.0, "no node has it", 1.0)
        return self._here[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._here, *self._missing))

    def __len__(self) -> int:
        return len(self._here) + len(self._missing)


def _available(outlook: Outlook, length: int | None) -> Availability:
    residency, wait_seconds, failure, returns_seconds = outlook
    told = first_line(failure) if failure is not None else None
    return Availability(cast(Residency, residency), wait_seconds, told, returns_seconds, length)


def _at(best: BestNode) -> Availability:
    said = best.example.capabilities
    able = Capabilities(
        said.context_tokens,
        {known: said.modalities[known] for known in MODALITIES if known in said.modalities},
        said.tools,
        None if said.endpoints is None else cast("frozenset[Endpoint]", frozenset(said.endpoints)),
    )
    absence = best.unavailable, best.returns_seconds
    return Availability(best.tier, best.wait_seconds, *absence, best.longest_tokens, able)


def _told(lengths: Mapping[str, TellsLength], expert: str) -> int | None:
    engine = lengths.get(expert)
    return None if engine is None else engine.longest_tokens


def reference_of(held_out: HeldOut, categories: list[str]) -> Reference | None:
    """Statistics of held-out training prompts under this router; None if the artifact has none."""
    weights = held_out.weights.astype(np.float64)
    total = float(weights.sum())
    if total <= 0.0:
        return None
    probabilities = held_out.probabilities.astype(np.float64)
    outside = held_out.trust <= 0.0
    shares = np.bincount(probabilities.argmax(axis=1)[~outside], weights[~outside], len(categories)) / total
    confidences = probabilities.max(axis=1)
    mean = float(np.average(confidences, weights=weights))
    return Reference(
        mix={**dict(zip(categories, shares.tolist(), strict=True)), OUTSIDE: float(weights[outside].sum()) / total},
        confidence=mean,
        confidence_deviation=math.sqrt(float(np.average((confidences - mean) ** 2, weights=weights))),
        prompts=len(weights),
    )


class Traffic:
    """Watches the traffic of one router."""

    def __init__(self, reference: Reference, router_version: str) -> None:
        self.reference = reference
        self._watch = DriftWatch(reference)
        self._left_band = self._watch.left_band
        self._version = router_version

    @property
    def drift(self) -> Drift:
        return self._watch.now

    def see(self, decision: RoutingDecision) -> None:
        """Count one decision that was carried out. Requests for a named expert do not count."""
        if not decision.probabilities or decision.confidence is None:
            return
        likeliest = max(decision.probabilities, key=decision.probabilities.__getitem__)
        if not self._watch.see(likeliest if decision.gate.inside else None, decision.confidence):
            return
        before, self._left_band = self._left_band, self._watch.left_band
        for reading, left in self._left_band.items():
            if left != before[reading]:
                self._tell(reading, left)

    def _tell(self, reading: str, left: bool) -> None:
        now, reference = self._watch.now, self.reference
        logger.warning(
            "drift: %s %s after %d requests: mix off by %.2f, out of domain %.2f (training %.2f), confidence %.2f"
            " (training %.2f), router %s",
            reading,
            "left the band of its training data" if left else "is back in the band of its training data",
            *(now.requests, now.mix_distance, now.outside, reference.outside, now.confidence, reference.confidence),
            self._version,
        )
