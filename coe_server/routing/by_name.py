"""Deciding without an artifact: an expert is taken by its name, and by nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from uuid import uuid4

from coe_server.errors import UnknownModel
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import (
    Availability,
    BudgetReading,
    GateReading,
    ResidentTrade,
    RouteOptions,
    RoutingDecision,
)
from coe_server.routing.selection import UNKNOWN, Candidate, Capabilities, absence, is_allowed, nobody, obstacle


class NamedRouter:
    """A router for a server that has none yet: to collect the outcomes that a real one is trained on."""

    version = "none"
    objectives: tuple[str, ...] = ()

    def __init__(self, experts: Sequence[str], capabilities: Mapping[str, Capabilities] | None = None) -> None:
        self._experts = tuple(experts)
        self._capabilities = capabilities or {}

    def route(
        self, conversation: Conversation, options: RouteOptions, availability: Mapping[str, Availability]
    ) -> RoutingDecision:
        """The expert asked for. Raises UnknownModel where none is, and what stands in the way of this one."""
        began = time.perf_counter()
        name = options.expert
        if name not in self._experts:
            raise UnknownModel(
                "this server has no router yet (router.artifact); ask for one of the experts by name: "
                + ", ".join(one for one in self._experts if is_allowed(one, options)),
                "model",
            )
        able = self._capabilities.get(name, UNKNOWN)
        here = availability.get(name)
        candidate = Candidate(
            name,
            expected_score=None,
            active_params_b=None,
            value=None,
            obstacle=obstacle(name, None, able, conversation.of_any_length(), options),
            availability=here,
            absence=absence(here),
        )
        if candidate.excluded is not None:
            raise nobody([candidate])
        return RoutingDecision(
            decision_id=uuid4().hex,
            router_version=self.version,
            objective=options.objective or "",
            category=None,
            confidence=None,
            probabilities={},
            expert=name,
            reason="requested",
            ranking=(candidate.ranked(),),
            gate=GateReading(None, None, None),
            budget=BudgetReading(None, None, 0.0),
            resident=ResidentTrade(),
            routing_ms=(time.perf_counter() - began) * 1000,
        )

    def price(self, objective: str) -> BudgetReading:
        """There are no objectives to ask for."""
        raise UnknownModel(f"there is no objective {objective!r}", "objective")

    def context_tokens(self, expert: str) -> int | None:
        """How many tokens an expert holds; None where that is not known."""
        return self._capabilities.get(expert, UNKNOWN).context_tokens

    def spending(self, decision: RoutingDecision) -> AbstractContextManager[Callable[[], None]]:
        """There is no budget to hold."""
        del decision
        return nullcontext(lambda: None)
