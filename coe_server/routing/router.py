"""Conversation -> decision: the steps of one decision, told in order.

Synchronous, no I/O, and no state that changes but the budgets' meters: one router may serve many threads. Knows
where each expert is only from the `Availability` it is given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coe_server.errors import RequestError, UnknownModel
from coe_server.routing import artifact as artifacts
from coe_server.routing import budget, selection
from coe_server.routing.artifact import Artifact
from coe_server.routing.budget import Meters
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import (
    Availability,
    BudgetReading,
    GateReading,
    Kept,
    RouteOptions,
    RoutingDecision,
)
from coe_server.routing.manifest import ExpertEntry
from coe_server.routing.scoring import Reader, Reading
from coe_server.routing.selection import (
    NOT_ALLOWED,
    UNKNOWN,
    Candidate,
    Capabilities,
    Choice,
    absence,
    doubt,
    is_allowed,
    known_modalities,
    obstacle,
)

DEFAULT_OBJECTIVE = "quality"
SURE_OF_A_NEW_TOPIC = 0.6  # probability of its category that one turn needs, to be taken for a new topic
UNREAD = GateReading(similarity=None, threshold=None, inside=None)


@dataclass(frozen=True, slots=True)
class Request:
    """One call of `route`: what was asked, and what is known of each expert."""

    conversation: Conversation
    options: RouteOptions
    availability: Mapping[str, Availability]


class Router:
    """A loaded artifact that decides. `capabilities` (by expert) overrule, where they say something, what the artifact
    says of an expert.

    With a `budget_window` the mean cost of that many answered requests is held at each objective's budget; with 0
    every decision uses the multiplier that training stored.
    """

    def __init__(
        self,
        artifact: Artifact,
        residency_tolerance: float = 0.0,
        capabilities: Mapping[str, Capabilities] | None = None,
        budget_window: int = 0,
    ) -> None:
        manifest = artifact.manifest
        self.artifact = artifact
        self.version = artifact.version
        self.expert_names = artifact.expert_names
        self.objectives = tuple(name for name, entry in manifest.objectives.items() if entry.shipped)
        self._residency_tolerance = residency_tolerance
        own = {one.name: _said_of(one) for one in manifest.experts}
        said = capabilities or {}
        self._capabilities = {name: said.get(name, UNKNOWN).over(own.get(name, UNKNOWN)) for name in {*own, *said}}
        self._active_params_b = {expert.name: expert.active_params_b for expert in manifest.experts}
        self._costs = {objective: np.array(manifest.costs(objective)) for objective in manifest.objectives}
        self._pins = {objective: artifact.pins(objective) for objective in manifest.objectives}
        self._unused = {
            objective: {
                name: f"not used under objective {objective}" for name in self.expert_names if name not in entry.experts
            }
            for objective, entry in manifest.objectives.items()
        }
        self._reader = Reader(artifact)
        self._meters = Meters(artifact, budget_window)

    @classmethod
    def load(
        cls,
        path: Path,
        residency_tolerance: float = 0.0,
        capabilities: Mapping[str, Capabilities] | None = None,
        budget_window: int = 0,
    ) -> Router:
        """The router in an artifact folder; raises ArtifactError with one sentence if it is not sound."""
        return cls(artifacts.load(path), residency_tolerance, capabilities, budget_window)

    def route(
        self, conversation: Conversation, options: RouteOptions, availability: Mapping[str, Availability]
    ) -> RoutingDecision:
        """Which expert answers, and why. `availability` has every expert that is served, by name.

        Raises UnknownModel (no such expert or objective), RequestError (an objective that was not shipped),
        NoCapableExpert (nobody can take this request), ExpertUnavailable (those who can are not to be had now).
        """
        started_ns = time.perf_counter_ns()
        request = Request(conversation, options, availability)
        objective = self._objective(options.objective)
        price = self.price(objective)
        if options.expert is not None:
            candidate = self._named(options.expert, request)
            return self._decision(
                objective, price, None, Choice(candidate, "requested"), [candidate], started_ns=started_ns
            )
        price = BudgetReading(price.target, price.mean, price.multiplier * budget.factor(conversation.turns))
        reading = self._reader.read(conversation.turns, options.min_confidence)
        candidates = self._candidates(reading, objective, price.multiplier, request)
        chosen = selection.stay(candidates, options.kept)
        if chosen is not None:
            newest = self._reader.read(conversation.turns[-1:], options.min_confidence)
            others = self._candidates(newest, objective, price.multiplier, request)
            if self._is_new_topic(newest, options.kept) and selection.is_worth_leaving(others, chosen):
                chosen, reading, candidates = None, newest, others
        chosen = chosen or self._choose(reading, objective, candidates)
        return self._decision(objective, price, reading, chosen, candidates, started_ns=started_ns)

    def price(self, objective: str) -> BudgetReading:
        """What this objective's budget, its spending and its multiplier are now."""
        return self._meters.price(objective)

    def context_tokens(self, expert: str) -> int | None:
        """How many tokens an expert holds; None where that is not known."""
        return self._capabilities.get(expert, UNKNOWN).context_tokens

    def spending(self, decision: RoutingDecision) -> AbstractContextManager[Callable[[], None]]:
        """To be held around a request while this decision is followed; what it gives is called on its answer.

        The budgets' meters learn from it what is being spent, and that nothing was where no answer came.
        """
        return self._meters.spending(decision)

    def answered(self, decision: RoutingDecision) -> None:
        """The same in one call, for a request that is answered already."""
        with self.spending(decision) as tell:
            tell()

    def _objective(self, name: str | None) -> str:
        entries = self.artifact.manifest.objectives
        objective = name or (DEFAULT_OBJECTIVE if DEFAULT_OBJECTIVE in entries else next(iter(entries)))
        if objective not in entries:
            known = ", ".join(entries)
            raise UnknownModel(f"there is no objective {objective!r}; this router has {known}", "objective")
        if not entries[objective].shipped:
            why = entries[objective].refusal or "training did not ship it"
            raise RequestError(f"objective {objective!r} is not served: {why}", "objective")
        return objective

    def _named(self, name: str, request: Request) -> Candidate:
        """The expert that was asked for by name; the router need not have been trained on it."""
        if name not in request.availability and name not in self.expert_names:
            known = ", ".join(sorted({*request.availability, *self.expert_names}))
            raise UnknownModel(f"there is no expert {name!r}; known are {known}", "model")
        candidate = self._candidate(name, replace(request, conversation=request.conversation.of_any_length()))
        if candidate.excluded is not None:
            raise selection.nobody([candidate])
        return candidate

    def _candidates(self, reading: Reading, objective: str, multiplier: float, request: Request) -> list[Candidate]:
        """Every expert with its expected score and value, or with the sentence that rules it out; the best first."""
        costs = self._costs[objective]
        values = budget.values(reading.expected, costs, multiplier)
        forbidden = self._unused[objective]
        if banned := self.artifact.manifest.bans.get(reading.category):
            forbidden = forbidden | dict.fromkeys(banned, f"banned for category {reading.category}")
        scored = zip(self.expert_names, reading.expected.tolist(), values.tolist(), costs.tolist(), strict=True)
        return selection.ordered(
            [
                self._candidate(name, request, score, value, cost, forbidden.get(name))
                for name, score, value, cost in scored
            ]
        )

    def _candidate(
        self,
        name: str,
        request: Request,
        score: float | None = None,
        value: float | None = None,
        cost: float = 0.0,
        forbidden: str | None = None,
    ) -> Candidate:
        """The expert with what this request and this moment hold against it."""
        size = self._active_params_b.get(name)
        able = self._capabilities.get(name, UNKNOWN)
        if not is_allowed(name, request.options):
            forbidden = NOT_ALLOWED  # before all else: what stops an expert is told to those who may use it
        stopped_by = forbidden or obstacle(name, size, able, request.conversation, request.options)
        where = request.availability.get(name)
        unsure = doubt(able, request.conversation)
        return Candidate(name, score, size, value, stopped_by, where, absence(where), cost, unsure)

    def _is_new_topic(self, newest: Reading, kept: Kept | None) -> bool:
        """Whether the newest turn alone is clearly about something else: "thanks, go on" is about nothing."""
        assert kept is not None, "only a conversation that has an expert can leave it"
        if newest.trust != "mapped" or newest.confidence < SURE_OF_A_NEW_TOPIC:
            return False
        return newest.likeliest != kept.category

    def _choose(self, reading: Reading, objective: str, candidates: Sequence[Candidate]) -> Choice:
        """Step two: a person's pin, else the mapping (hard) or the best value (soft), then residency."""
        free = selection.eligible(candidates)
        pin = self._pins[objective].get(reading.category)
        pinned = selection.choose_named(free, pin, reading.trust) if pin else None
        if pinned is not None:
            return pinned
        by_value = selection.choose_by_value(free, reading.trust)
        if self.artifact.manifest.mode == "hard":
            by_value = selection.choose_named(free, self._mapped(reading, objective), reading.trust) or by_value
        return selection.take_resident(by_value, free, self._residency_tolerance)

    def _mapped(self, reading: Reading, objective: str) -> str:
        entry = self.artifact.manifest.objectives[objective]
        return entry.mapping[reading.likeliest] if reading.trust == "mapped" else entry.fallback

    def _decision(
        self,
        objective: str,
        price: BudgetReading,
        reading: Reading | None,
        chosen: Choice,
        candidates: Sequence[Candidate],
        *,
        started_ns: int,
    ) -> RoutingDecision:
        categories = self.artifact.manifest.categories
        probabilities = dict(zip(categories, reading.probabilities.tolist(), strict=True)) if reading else {}
        return RoutingDecision(
            decision_id=os.urandom(16).hex(),
            router_version=self.version,
            objective=objective,
            category=reading.category if reading else None,
            confidence=reading.confidence if reading else None,
            probabilities=probabilities,
            expert=chosen.expert.name,
            reason=chosen.reason,
            ranking=selection.ranking(chosen, candidates),
            gate=reading.gate if reading else UNREAD,
            budget=price,
            resident=chosen.trade,
            routing_ms=(time.perf_counter_ns() - started_ns) / 1e6,
        )


def _said_of(entry: ExpertEntry) -> Capabilities:
    return Capabilities(entry.context_tokens, known_modalities(entry.vision, entry.modalities), entry.tools)
