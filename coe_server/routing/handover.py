"""Whether an answer that has begun is handed over to another expert, by the certainty of its first tokens. Pure.

The first expert's probability of being right takes the place of its expected score. The other experts' values are the
router's own, less the wasted start and the wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coe_server.routing.capabilities import Profile, obstacle
from coe_server.routing.certainty import WHOLE, CertaintyModel, Handover
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import GENERAL, Availability, HandedOver, RankedExpert, RouteOptions, RoutingDecision
from coe_server.routing.manifest import Manifest
from coe_server.routing.own_routes.choice import NOT_OF_ROUTE

FIRST_TOKENS = 8  # if neither the configuration nor the artifact says
ANSWER_TOKENS = 256  # assumed of an answer without a limit
UNMEASURED_CHANCE = 0.2  # of a handover
UNRATED = 0.5  # expected score of an expert without ratings
_CALLERS = frozenset(("requested", "sticky"))  # the caller's own choices


@dataclass(frozen=True, slots=True)
class HandoverTerms:
    """As configured. `tokens`: None: the artifact's, WHOLE: the whole of an answer that is not streamed.

    `margin`: None: the artifact's, if it shipped one. `score_per_second`: expected score that a second of waiting must
    buy. `objectives`: by name the terms of those that have their own.
    """

    tokens: int | None = None
    at_most: int = 1
    margin: float | None = None
    score_per_second: float = 0.01
    objectives: Mapping[str, HandoverTerms] = field(default_factory=dict)

    def under(self, objective: str) -> HandoverTerms:
        return self.objectives.get(objective, self)


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges the answer of a decision's expert. `expected`: what the router expects of it, None if it cannot tell.

    `wasted`: the share of its answer that is generated before the judgement. `overall`: mean scores of rated experts.
    `chance`: the probability of a handover. `judged`: experts whose expected score is P(right) of their own answer.
    `beyond`: experts of other routes that may take over. `before`: the models of the judged experts that were unsure,
    each with P(right) of its answer.
    """

    model: CertaintyModel
    rule: Handover
    expected: float | None
    wasted: float
    score_per_second: float
    overall: Mapping[str, float]
    chance: float
    judged: frozenset[str] = frozenset()
    beyond: frozenset[str] = frozenset()
    before: tuple[tuple[CertaintyModel, float], ...] = ()

    def certainty(self, logprobs: Sequence[float]) -> float:
        """P(right) of an answer whose tokens so far have these log-probabilities, of which there is at least one."""
        return self.model.probability(logprobs, self.expected, self.rule.tokens)

    def successor(
        self, decision: RoutingDecision, certainty: float, now: Mapping[str, Availability], left_seconds: float
    ) -> RoutingDecision | None:
        """The decision for the expert that takes over; None if the answer stays where it is.

        `left_seconds`: until the caller's deadline. The first expert keeps its place in the ranking, by its certainty.
        """
        first, *others = decision.ranking
        able = [one for one in others if self._may(one) and _comes_in_time(now.get(one.expert), left_seconds)]
        free = [one for one in able if one.expert not in self.judged or _certainty_of(one) > certainty]
        if not free:
            return None
        values = {one.expert: self._value(one, certainty, now) for one in free}
        best = max(free, key=lambda one: values[one.expert])  # of equal ones the first of the ranking
        stays = certainty - _price(first) * (1.0 - self.wasted)
        if not self.rule.takes(stays, values[best.expert]):
            return None
        told = HandedOver(
            *(first.expert, best.expert, round(certainty, 6), round(self._score(best, certainty), 6)),
            *(self.rule.tokens, self.wasted),
        )
        first = first._replace(expected_score=certainty, value=certainty - _price(first))
        residency, wait_seconds = now[best.expert].residency, now[best.expert].predicted_wait_seconds
        chosen = best._replace(residency=residency, predicted_wait_seconds=wait_seconds, excluded=None)
        return replace(
            decision,
            expert=best.expert,
            reason="handed_over",
            ranking=(chosen, *_inserted(first, [one for one in others if one is not best])),
            handovers=(*decision.handovers, told),
        )

    def likely_successor(self, decision: RoutingDecision) -> str:
        """The expert that would take over now, of a decision that may be handed over."""
        likely = (one for one in decision.ranking[1:] if self._may(one))
        return max(likely, key=lambda one: self._worth(one, 0.0)).expert

    def may_hand_over(self, decision: RoutingDecision) -> bool:
        """True if another expert would take over from an answer that is certainly wrong."""
        first, *others = decision.ranking
        values = [self._worth(one, 0.0) for one in others if self._may(one)]
        return bool(values) and self.rule.takes(-_price(first) * (1.0 - self.wasted), max(values))

    def _may(self, one: RankedExpert) -> bool:
        return _is_likely(one) or one.expert in self.beyond

    def _value(self, one: RankedExpert, certainty: float, now: Mapping[str, Availability]) -> float:
        wait_seconds = now[one.expert].predicted_wait_seconds
        return self._worth(one, certainty) - wait_seconds * self.score_per_second

    def _worth(self, one: RankedExpert, certainty: float) -> float:
        """The expected score less the cost. A negative margin is in favour of experts that were not asked yet."""
        handicap = min(self.rule.margin, 0.0) if one.expert in self.judged else 0.0
        return self._score(one, certainty) - _price(one) + handicap

    def _score(self, one: RankedExpert, certainty: float) -> float:
        """What is expected of another expert. Where the router says nothing of this prompt, the failures of the first
        one and of those before it tell more than overall means."""
        if self.expected is None and one.expert not in self.judged:
            unsure = (*self.before, (self.model, certainty))
            instead = [model.expected_instead(one.expert, right) for model, right in unsure]
            if known := [score for score in instead if score is not None]:
                return min(known)
        return self.overall.get(one.expert, UNRATED) if one.expected_score is None else one.expected_score


class Judges:
    """The judges of a router's decisions: of experts with a certainty model, under objectives that may hand over."""

    def __init__(self, manifest: Manifest, terms: HandoverTerms | None, profiles: Mapping[str, Profile]) -> None:
        self._terms = terms
        self._profiles = profiles
        self._models = manifest.certainty_models if terms is not None else {}
        self._entries = {name: entry.handover for name, entry in manifest.objectives.items()}
        self._overall = {name: entry.score for name, entry in manifest.overall.items() if entry.prompts > 0}
        self._routes = manifest.routes

    def refusal(self, objective: str) -> str | None:
        """Why no answer is handed over under this objective, although it is configured; None if some may be."""
        terms = None if self._terms is None else self._terms.under(objective)
        if terms is None or terms.at_most == 0:
            return None
        if not self._models:
            return "the artifact says nothing of experts' certainty; fit it to outcomes with log-probabilities"
        entry = self._entries.get(objective)
        if terms.margin is not None or (entry is not None and entry.shipped):
            return None
        return "training has not measured it" if entry is None else entry.refusal

    def of(
        self, decision: RoutingDecision, conversation: Conversation, options: RouteOptions, is_streamed: bool
    ) -> Judge | None:
        """The judge of the decision's expert; None if its answer is not judged."""
        model = self._models.get(decision.expert)
        if self._terms is None or model is None or decision.reason in _CALLERS:
            return None
        terms = self._terms.under(decision.objective)
        rule = self._rule(decision, terms, is_streamed)
        if rule is None:
            return None
        if rule.tokens != WHOLE and (calibrated := model.curve(rule.tokens).tokens) != WHOLE:
            rule = replace(rule, tokens=calibrated)  # more tokens would be held for nothing
        if decision.reason == "route" and self._routes is None:  # a pin
            return None
        if len(decision.handovers) >= terms.at_most or any(one.first == decision.expert for one in decision.handovers):
            return None
        first = decision.ranking[0]
        says_nothing = self._routes is not None or decision.category == GENERAL or decision.gate.inside is False
        expected = None if says_nothing else first.expected_score
        wasted = _wasted(rule, is_streamed, conversation.answer_tokens)
        judge = Judge(
            *(model, rule, expected, wasted, terms.score_per_second, self._overall, self._chance(decision)),
            frozenset(one.first for one in decision.handovers),
            self._beyond(decision, conversation, options),
            tuple((self._models[one.first], one.certainty) for one in decision.handovers),
        )
        return judge if judge.may_hand_over(decision) else None

    def _beyond(self, decision: RoutingDecision, conversation: Conversation, options: RouteOptions) -> frozenset[str]:
        """Experts of other routes that can take this request, unless a rule chose the route.

        Not one of another server in the place of one that is here: its operator may mean prompts to stay.
        """
        route = (self._routes or {}).get(decision.category or "")
        if route is None or route.match is not None:
            return frozenset()
        is_elsewhere = decision.ranking[0].residency == "remote"
        others = (one for one in decision.ranking[1:] if (one.excluded or "").startswith(NOT_OF_ROUTE))
        return frozenset(
            one.expert
            for one in others
            if (is_elsewhere or one.residency != "remote")
            and _is_able(self._profiles.get(one.expert) or Profile(one.expert), conversation, options)
        )

    def _chance(self, decision: RoutingDecision) -> float:
        entry = self._entries.get(decision.objective)
        return UNMEASURED_CHANCE if entry is None else entry.share

    def _rule(self, decision: RoutingDecision, terms: HandoverTerms, is_streamed: bool) -> Handover | None:
        entry, margin = self._entries.get(decision.objective), terms.margin
        if margin is None:
            if entry is None or not entry.shipped:
                return None
            margin = entry.margin
        tokens = entry.tokens if terms.tokens is None and entry is not None else terms.tokens
        if tokens is None or (tokens == WHOLE and is_streamed):
            tokens = FIRST_TOKENS
        return Handover(tokens, margin)


def _wasted(rule: Handover, is_streamed: bool, answer_tokens: int) -> float:
    """The share of an answer that is generated by then; an engine sends one that is not streamed when it is whole."""
    return min(1.0, rule.tokens / min(answer_tokens or ANSWER_TOKENS, ANSWER_TOKENS)) if is_streamed else 1.0


def _is_likely(one: RankedExpert) -> bool:
    return one.excluded is None and one.doubt is None


def _is_able(expert: Profile, conversation: Conversation, options: RouteOptions) -> bool:
    return obstacle(expert.name, expert.active_params_b, expert.capabilities, conversation, options) is None


def _comes_in_time(there: Availability | None, left_seconds: float) -> bool:
    return there is not None and there.unavailable is None and there.predicted_wait_seconds < left_seconds


def _certainty_of(judged: RankedExpert) -> float:
    """P(right) of the answer of an expert that was judged before."""
    return 0.0 if judged.expected_score is None else judged.expected_score


def _price(one: RankedExpert) -> float:
    """What the expert's cost takes from its value."""
    return 0.0 if one.expected_score is None or one.value is None else one.expected_score - one.value


def _inserted(first: RankedExpert, others: Sequence[RankedExpert]) -> tuple[RankedExpert, ...]:
    """The ranking with this expert before the first that is worth less or is not likely able."""
    value = first.value or 0.0
    place = next(
        (at for at, one in enumerate(others) if not _is_likely(one) or (one.value or 0.0) < value), len(others)
    )
    return (*others[:place], first, *others[place:])
