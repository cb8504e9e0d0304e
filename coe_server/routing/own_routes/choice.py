"""Step two for configured routes: match rules, then the classifier's route, then its expert or a substitute.

Budgets do not change a route's expert; residency does within the route's own tolerance. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coe_server.config.routes import DEFAULT_ROUTE
from coe_server.routing import selection
from coe_server.routing.capabilities import Profile, Request, is_allowed
from coe_server.routing.decision import Reason
from coe_server.routing.exploration import Learned, Mode, explored
from coe_server.routing.manifest import RouteEntry
from coe_server.routing.own_routes.rules import Rule, first_match
from coe_server.routing.scoring import PromptScores, Scorer, is_new_topic
from coe_server.routing.selection import Candidate, Choice, Terms

if TYPE_CHECKING:
    from coe_server.routing.artifact import Artifact

NOT_OF_ROUTE = "not an expert of route"
UNRATED = 0.5  # score of every expert of a route without ratings, before anything was learned


@dataclass(frozen=True, slots=True)
class Route:
    """One route: its `experts`, `places` (the order of all experts that may answer), and known `scores` by expert."""

    name: str
    entry: RouteEntry
    experts: Sequence[str]
    places: Mapping[str, int]
    scores: Mapping[str, float]

    def terms(self, expert: str, known: Learned, anyone: bool = False) -> Terms:
        """The expert's score with what was learned, or why the route forbids it, unless `anyone` may answer."""
        score = self.scores.get(expert)
        if known.knows(self.name):
            score = (UNRATED if score is None else score) + known.shift(self.name, expert)
        is_named = anyone or expert in self.places or (self.entry.tolerance > 0.0 and len(self.experts) == 1)
        return Terms(score, score, 0.0, None if is_named else f"{NOT_OF_ROUTE} {self.name}")

    def rated(self, everyone: Sequence[str]) -> Sequence[str]:
        """The experts whose scores can change an answer: its own where it has a choice, all within a tolerance."""
        if len(self.experts) > 1:
            return self.experts
        return everyone if self.entry.tolerance > 0.0 else ()

    def ranked(self, known: Learned) -> Mapping[str, int]:
        """`places`; once scores were learned, the route's own experts share the first."""
        return {**self.places, **dict.fromkeys(self.experts, 0)} if known.knows(self.name) else self.places


@dataclass(frozen=True, slots=True)
class OwnRoutes:
    """All routes by name, including the default; `rules` in file order."""

    routes: Mapping[str, Route]
    rules: Mapping[str, Rule]
    profiles: Sequence[Profile]
    scorer: Scorer

    @classmethod
    def of(cls, artifact: Artifact, profiles: Mapping[str, Profile], scorer: Scorer) -> OwnRoutes:
        entries = artifact.manifest.routes or {}
        rules = {name: Rule.of(entry.match) for name, entry in entries.items() if entry.match is not None}
        routes = {name: _route(artifact, name, entry) for name, entry in entries.items()}
        return cls(routes, rules, [profiles[name] for name in artifact.expert_names], scorer)

    @property
    def rated_experts(self) -> Mapping[str, Sequence[str]]:
        """By route, the experts whose scores can change its answers."""
        everyone = [one.name for one in self.profiles]
        return {name: route.rated(everyone) for name, route in self.routes.items()}

    def choose(
        self, scores: PromptScores, request: Request, mode: Mode, known: Learned
    ) -> tuple[str, Choice, list[Candidate]]:
        """(route, choice, candidates): the conversation's expert, else the route of a rule, else the classifier's.

        Raises NoCapableExpert or ExpertUnavailable as `selection.eligible` does.
        """
        conversation, options, _ = request
        name = first_match(self.rules, conversation, options.key)
        if name is None and conversation.is_media:
            raise selection.not_routed(conversation)
        reason: Reason = "route"
        if name is None:
            name, reason = (scores.likeliest, "route") if scores.trust == "mapped" else (DEFAULT_ROUTE, scores.trust)
        kept = options.kept
        if kept is not None:
            unlimited = selection.ordered(selection.candidate(one, request) for one in self.profiles)
            sticky = selection.stay(unlimited, kept)
            newest = self.scorer.score(conversation.turns[-1:], options.min_confidence)
            if sticky is not None and not self._leads_away(newest, sticky, request):
                return (kept.category if kept.category in self.routes else None) or name, sticky, unlimited
            name, reason = (newest.likeliest, "route") if sticky is not None else (name, reason)
        return name, *self._of_route(self.routes[name], reason, request, mode, known)

    def _leads_away(self, newest: PromptScores, sticky: Choice, request: Request) -> bool:
        """True if the newest turn clearly belongs to a route without the conversation's expert."""
        kept = request.options.kept
        assert kept is not None, "a sticky conversation has a kept expert"
        return is_new_topic(newest, kept) and sticky.expert.name not in self.routes[newest.likeliest].experts

    def _of_route(
        self, route: Route, reason: Reason, request: Request, mode: Mode, known: Learned
    ) -> tuple[Choice, list[Candidate]]:
        anyone = not any(is_allowed(name, request.options) for name in route.places)  # by the request and its key
        found = (selection.candidate(one, request, route.terms(one.name, known, anyone)) for one in self.profiles)
        candidates = selection.ordered_by(found, route.ranked(known))
        free = selection.eligible(candidates)
        first = free[0]
        if first.name not in route.experts:
            return Choice(first, "fallback"), candidates
        among = free if len(route.experts) == 1 else [one for one in free if one.name in route.experts]
        scored = [one for one in among if one.expected_score is not None]
        chosen = Choice(first, reason)
        usual = selection.take_resident(chosen, scored, route.entry.tolerance)
        if request.options.draw is None or len(route.experts) == 1:
            return usual, candidates
        return explored(chosen, usual, among, route.name, request.options.draw, mode, known), candidates


def _route(artifact: Artifact, name: str, entry: RouteEntry) -> Route:
    """The route with later edits of the mapping, and the order of its experts."""
    manifest = artifact.manifest
    changed = artifact.pins(next(iter(manifest.objectives))).get(name)
    experts = [changed] if changed else entry.experts
    row = manifest.score[name]
    scores = {one: row[one].score for one in row} if any(one.prompts for one in row.values()) else {}
    places = dict.fromkeys(experts, 0) if scores else {one: place for place, one in enumerate(experts)}
    defaults = (manifest.routes or {})[DEFAULT_ROUTE].experts
    for one in (*([entry.otherwise] if entry.otherwise else []), *defaults):
        places.setdefault(one, len(experts) + len(places))
    return Route(name, entry, experts, places, scores)
