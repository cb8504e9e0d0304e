"""Routing without an artifact: each request names its expert."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from coe_server.errors import UnknownModel
from coe_server.routing.capabilities import UNKNOWN, Capabilities, Profile, Request, is_allowed
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import (
    Availability,
    BudgetReading,
    GateReading,
    ResidentTrade,
    RouteOptions,
    RoutingDecision,
)
from coe_server.routing.selection import requested


class NamedRouter:
    """The router of a server without an artifact, e.g. for collecting outcomes for training."""

    version = "none"
    objectives: tuple[str, ...] = ()

    def __init__(self, experts: Sequence[str], capabilities: Mapping[str, Capabilities] | None = None) -> None:
        said = capabilities or {}
        self._capabilities = said
        self._experts = {name: Profile(name, None, said.get(name, UNKNOWN)) for name in experts}

    def route(
        self, conversation: Conversation, options: RouteOptions, availability: Mapping[str, Availability]
    ) -> RoutingDecision:
        """The requested expert. Raises UnknownModel if the request names none, or the error that excludes it."""
        started_ns = time.perf_counter_ns()
        expert = self._experts.get(options.expert or "")
        if expert is None and options.expert is not None and options.expert in availability:  # learned from a node
            expert = Profile(options.expert)
        if expert is None:
            raise UnknownModel(
                "this server has no router (router.routes or router.artifact); request an expert by name: "
                + ", ".join(one for one in self._experts if is_allowed(one, options)),
                "model",
            )
        candidate = requested(expert, Request(conversation, options, availability))
        return RoutingDecision(
            decision_id=os.urandom(16).hex(),
            router_version=self.version,
            objective=options.objective or "",
            category=None,
            confidence=None,
            probabilities={},
            expert=expert.name,
            reason="requested",
            ranking=(candidate.ranked(),),
            gate=GateReading(None, None, None),
            budget=BudgetReading(None, None, 0.0),
            resident=ResidentTrade(),
            routing_ms=(time.perf_counter_ns() - started_ns) / 1e6,
        )

    def price(self, objective: str) -> BudgetReading:
        """Raises UnknownModel: without an artifact there are no objectives."""
        raise UnknownModel(f"there is no objective {objective!r}", "objective")

    def context_tokens(self, expert: str) -> int | None:
        """Context length of an expert in tokens; None if unknown."""
        return self._capabilities.get(expert, UNKNOWN).context_tokens

    def spending(self, decision: RoutingDecision) -> AbstractContextManager[Callable[[], None]]:
        """Do nothing: there is no budget."""
        del decision
        return nullcontext(lambda: None)
