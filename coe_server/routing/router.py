"""Conversation -> decision: the steps of one decision, in order.

Synchronous, no I/O. Its only mutable state are the budgets' meters, so threads may share one router. The residency of
experts is an argument (`Availability`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from coe_server.errors import RequestError, UnknownModel
from coe_server.routing import artifact as artifacts
from coe_server.routing import budget, selection
from coe_server.routing.artifact import Artifact
from coe_server.routing.capabilities import UNKNOWN, Capabilities, Profile, Request, known_modalities
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import (
    GENERAL,
    Availability,
    BudgetReading,
    Costs,
    GateReading,
    Reason,
    RouteOptions,
    RoutingDecision,
)
from coe_server.routing.exploration import Mode, explored, nothing_learned
from coe_server.routing.handover import HandoverTerms, Judges
from coe_server.routing.manifest import ExpertEntry, Manifest, ObjectiveEntry
from coe_server.routing.own_routes.choice import OwnRoutes
from coe_server.routing.scoring import PromptScores, Scorer, is_new_topic
from coe_server.routing.selection import Candidate, Choice, Terms

DEFAULT_OBJECTIVE = "quality"
UNREAD = GateReading(similarity=None, threshold=None, inside=None)


@dataclass(frozen=True, slots=True)
class Objective:
    """Precomputed values of one objective. `cost_of` [experts]: cost in its unit, in the artifact's order.

    `stored`: the price from training. `mapping`: category -> expert, as stored. `pins`: the pairs set by hand.
    `unused`: expert -> why it is forbidden.
    """

    name: str
    entry: ObjectiveEntry
    stored: BudgetReading
    cost_of: Mapping[str, float]
    mapping: Mapping[str, str]
    pins: Mapping[str, str]
    unused: Mapping[str, str]

    @classmethod
    def of(cls, artifact: Artifact, name: str) -> Objective:
        entry, costs = artifact.manifest.objectives[name], artifact.manifest.costs(name)
        unused = [one for one in artifact.expert_names if one not in entry.experts]
        return cls(
            name,
            entry,
            BudgetReading(entry.budget, None, entry.multiplier),
            dict(zip(artifact.expert_names, costs, strict=True)),
            {**artifact.mapping[name], **artifact.manifest.pins},
            artifact.pins(name),
            dict.fromkeys(unused, f"not used under objective {name}"),
        )


class Router:
    """Routes with a loaded artifact. `capabilities` (by expert) override those of the artifact.

    With a `budget_window` the mean cost over that many answered requests is kept at each objective's budget; with 0
    every decision uses the stored multiplier. `meters`: of the spending, by objective; a router of the same artifact
    that takes this one's place gets them. `exploration`: how a conversation's expert is drawn. `learned` is replaced as
    a whole when ratings have moved scores. `rated_experts`: by category, those whose learned scores can change an
    answer. `judges`: of answers that may be handed over.
    """

    def __init__(
        self,
        artifact: Artifact,
        residency_tolerance: float = 0.0,
        capabilities: Mapping[str, Capabilities] | None = None,
        budget_window: int = 0,
        exploration: Mode = "off",
        handover: HandoverTerms | None = None,
    ) -> None:
        manifest = artifact.manifest
        self.artifact = artifact
        self._version = artifact.version
        self.exploration = exploration
        self.learned = nothing_learned((*manifest.categories, GENERAL), artifact.expert_names)
        self.expert_names = artifact.expert_names
        self.objectives = tuple(name for name, entry in manifest.objectives.items() if entry.shipped)
        self._residency_tolerance = residency_tolerance
        self._profiles = _profiles(manifest.experts, capabilities or {})
        self._experts = tuple(self._profiles[name] for name in self.expert_names)
        self._objectives = {name: Objective.of(artifact, name) for name in manifest.objectives}
        self._costs = _costs(manifest)
        self._scorer = Scorer(artifact)
        self._routes = OwnRoutes.of(artifact, self._profiles, self._scorer) if manifest.routes is not None else None
        self.rated_experts: Mapping[str, Sequence[str]] = (
            dict.fromkeys(self.learned.rows, self.expert_names) if self._routes is None else self._routes.rated_experts
        )
        self.meters = budget.meters(manifest, budget_window)
        self.judges = Judges(manifest, handover, self._profiles)

    @classmethod
    def load(
        cls,
        path: Path,
        residency_tolerance: float = 0.0,
        capabilities: Mapping[str, Capabilities] | None = None,
        budget_window: int = 0,
        handover: HandoverTerms | None = None,
    ) -> Router:
        """The router of an artifact folder. Raises ArtifactError if it is invalid."""
        return cls(artifacts.load(path), residency_tolerance, capabilities, budget_window, handover=handover)

    @property
    def version(self) -> str:
        """The artifact's, with the number of steps that ratings have moved its scores."""
        steps = self.learned.steps
        return f"{self._version}+{steps}" if steps else self._version

    def route(
        self, conversation: Conversation, options: RouteOptions, availability: Mapping[str, Availability]
    ) -> RoutingDecision:
        """Choose the expert for a request. `availability`: every served expert, by name.

        Raises UnknownModel (no such expert or objective), RequestError (an objective that was not shipped),
        NoCapableExpert (no expert can take this request), ExpertUnavailable (the experts that can are unavailable now).
        """
        started_ns = time.perf_counter_ns()
        request = Request(conversation, options, availability)
        objective = _shipped(options.objective, self._objectives)
        price = self.price(objective.name)
        if options.expert is not None:
            candidate = _requested(options.expert, request, self._profiles, self.expert_names)
            chosen = Choice(candidate, "requested")
            return self._decision(objective, price, None, chosen, [candidate], started_ns=started_ns)
        stored = objective.stored.multiplier
        if price.multiplier or stored:
            factor = budget.factor(conversation.turns)
            price, stored = price._replace(multiplier=price.multiplier * factor), stored * factor
        if self._routes is None and conversation.is_media:
            raise selection.not_routed(conversation)
        scores = self._scorer.score(conversation.turns, options.min_confidence)
        if self._routes is not None:
            name, chosen, candidates = self._routes.choose(scores, request, self.exploration, self.learned)
            return self._decision(objective, price, scores, chosen, candidates, started_ns=started_ns, category=name)
        candidates = self._candidates(scores, objective, price.multiplier, request)
        kept = options.kept
        sticky = selection.stay(candidates, kept)
        if sticky is not None and kept is not None:
            newest = self._scorer.score(conversation.turns[-1:], options.min_confidence)
            others = self._candidates(newest, objective, price.multiplier, request)
            if is_new_topic(newest, kept) and selection.is_worth_leaving(others, sticky):
                sticky, scores, candidates = None, newest, others
        stored_here = None if stored == price.multiplier else stored
        chosen = sticky or self._choose(scores, objective, candidates, stored_here, options.draw)
        return self._decision(objective, price, scores, chosen, candidates, started_ns=started_ns)

    def price(self, objective: str) -> BudgetReading:
        """This objective's budget, mean cost and multiplier now."""
        stored, meter = self._objectives[objective].stored, self.meters.get(objective)
        if meter is None:
            return stored
        balance = meter.balance
        return BudgetReading(stored.target, balance.mean, balance.multiplier)

    def context_tokens(self, expert: str) -> int | None:
        """Context length of an expert in tokens; None if unknown."""
        profile = self._profiles.get(expert)
        return profile.capabilities.context_tokens if profile else None

    def spending(self, decision: RoutingDecision) -> AbstractContextManager[Callable[[], None]]:
        """A context for the time of the request; call the function that it yields once the request is answered.

        The objective's meter counts the cost on entry, and takes it back on exit without an answer. Experts requested
        by name are not counted.
        """
        meter = self.meters.get(decision.objective)
        if meter is None or decision.reason == "requested":
            return nullcontext(lambda: None)
        costs = self._objectives[decision.objective].cost_of
        return meter.spending(costs[decision.expert] + decision.wasted(costs))

    def _candidates(
        self, scores: PromptScores, objective: Objective, multiplier: float, request: Request
    ) -> list[Candidate]:
        """All experts with expected score and value, or the reason that excludes them; best first."""
        forbidden = objective.unused
        if banned := self.artifact.manifest.bans.get(scores.category):
            forbidden = {**forbidden, **dict.fromkeys(banned, f"banned for category {scores.category}")}
        costs, expected = objective.cost_of.values(), self.learned.over(scores.expected, scores.category)
        values = budget.values(expected, costs, multiplier)
        return selection.ordered(
            [
                selection.candidate(expert, request, Terms(score, value, cost, forbidden.get(expert.name)))
                for expert, score, value, cost in zip(self._experts, expected, values, costs, strict=True)
            ]
        )

    def _choose(
        self,
        scores: PromptScores,
        objective: Objective,
        candidates: Sequence[Candidate],
        stored: float | None,
        draw: float | None,
    ) -> Choice:
        """Step two: a pin, else the mapping (hard) or the best value (soft), then residency, then the draw.

        `stored`: the stored multiplier for this prompt; None if it equals the live one.
        """
        free = selection.eligible(candidates)
        pin = objective.pins.get(scores.category)
        given = selection.choose_named(free, pin, "route") if pin else None
        if given is not None:
            return given
        mapped, learned = objective.mapping[scores.likeliest], self.learned
        chosen = _best(free, mapped, scores.trust, stored)
        if self.artifact.manifest.mode == "hard" and not learned.knows(scores.category):
            named = mapped if scores.trust == "mapped" else objective.entry.fallback
            chosen = selection.choose_named(free, named, scores.trust) or chosen
        usual = selection.take_resident(chosen, free, self._residency_tolerance)
        if draw is None:
            return usual
        return explored(chosen, usual, free, scores.category, draw, self.exploration, learned)

    def _decision(
        self,
        objective: Objective,
        price: BudgetReading,
        scores: PromptScores | None,
        chosen: Choice,
        candidates: Sequence[Candidate],
        *,
        started_ns: int,
        category: str | None = None,
    ) -> RoutingDecision:
        categories, decision_id, drawn = self.artifact.manifest.categories, os.urandom(16).hex(), chosen.exploration
        if drawn is not None and drawn.conversation is None:
            drawn = drawn._replace(conversation=decision_id)
        return RoutingDecision(
            decision_id=decision_id,
            router_version=self.version,
            objective=objective.name,
            category=category or (scores.category if scores else None),
            confidence=scores.confidence if scores else None,
            probabilities=dict(zip(categories, scores.probabilities, strict=True)) if scores else {},
            expert=chosen.expert.name,
            reason=chosen.reason,
            ranking=selection.ranking(chosen, candidates),
            gate=scores.gate if scores else UNREAD,
            budget=price,
            resident=chosen.trade,
            routing_ms=(time.perf_counter_ns() - started_ns) / 1e6,
            exploration=drawn,
            costs=None if chosen.reason == "requested" else self._costs,
        )


def _costs(manifest: Manifest) -> Costs | None:
    """The costs of all experts; None if the scores, or the cost of the expert with the best overall score, are
    unknown."""
    unit = manifest.cost_unit
    of = {one.name: cost for one in manifest.experts if (cost := getattr(one, unit)) is not None}
    scored = [name for name, entry in manifest.overall.items() if entry.prompts > 0]
    best = max(scored, key=lambda name: manifest.overall[name].score, default=None)
    return None if best is None or best not in of else Costs(unit, best, of)


def _profiles(entries: Sequence[ExpertEntry], said: Mapping[str, Capabilities]) -> dict[str, Profile]:
    """Experts by name. Capabilities `said` by the server's configuration take precedence over the artifact's."""
    found = {}
    for one in entries:
        trained = Capabilities(one.context_tokens, known_modalities(one.vision, one.modalities), one.tools)
        found[one.name] = Profile(one.name, one.active_params_b, said.get(one.name, UNKNOWN).over(trained))
    return found | {name: Profile(name, None, able) for name, able in said.items() if name not in found}


def _shipped(name: str | None, objectives: Mapping[str, Objective]) -> Objective:
    """The objective of this name, or the default. Raises UnknownModel, or RequestError if it was not shipped."""
    name = name or (DEFAULT_OBJECTIVE if DEFAULT_OBJECTIVE in objectives else next(iter(objectives)))
    objective = objectives.get(name)
    if objective is None:
        known = ", ".join(objectives)
        raise UnknownModel(f"there is no objective {name!r}; this router has {known}", "objective")
    if not objective.entry.shipped:
        why = objective.entry.refusal or "training did not ship it"
        raise RequestError(f"objective {name!r} is not served: {why}", "objective")
    return objective


def _requested(name: str, request: Request, profiles: Mapping[str, Profile], trained: Sequence[str]) -> Candidate:
    """The expert requested by name; also one that the router was not trained on."""
    if name not in request.availability and name not in trained:
        known = ", ".join(sorted({*request.availability, *trained}))
        raise UnknownModel(f"there is no expert {name!r}; known are {known}", "model")
    return selection.requested(profiles.get(name) or Profile(name), request)


def _best(free: Sequence[Candidate], mapped: str, trust: Reason, stored: float | None) -> Choice:
    """The expert of the best value, and the reason: live multiplier, overall means or mixing, checked in this order."""
    best = free[0]
    if stored is not None and selection.best_at(free, stored) is not best:
        return Choice(best, "budget")
    return Choice(best, "mixed" if trust == "mapped" and best.name != mapped else trust)
