"""The values of a decision: options, availability of experts, and the choice with its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from coe_server.routing.capabilities import Capabilities

Residency = Literal["device", "host", "disk", "remote"]
Priority = Literal["high", "normal", "batch"]
Reason = Literal[
    "requested",
    "sticky",
    "route",
    "mapped",
    "mixed",
    "out_of_domain",
    "general",
    "budget",
    "resident",
    "explored",
    "handed_over",
    "fallback",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
GENERAL = "general"


class Availability(NamedTuple):
    """Where an expert's weights are now, how long a lease would take, and why it is unavailable (or None).

    `returns_seconds`: until it may be available again, where that is known. `longest_tokens`: of a request with its
    answer, as its engine told when it started. `able`: what it can take, of an expert that was learned from a node.
    """

    residency: Residency
    predicted_wait_seconds: float
    unavailable: str | None = None
    returns_seconds: float | None = None
    longest_tokens: int | None = None
    able: Capabilities | None = None


class Exploration(NamedTuple):
    """The draw of a conversation's expert.

    `drawn`: the expert, `usual`: the one without a draw. `probabilities`: of each expert in this `category`, residency
    included. `expected`: score of the drawn expert before anything was learned; None where it had none.
    `conversation`: the decision of the draw, which later turns repeat.
    """

    drawn: str
    usual: str
    probabilities: dict[str, float]
    category: str
    expected: float | None = None
    conversation: str | None = None


class HandedOver(NamedTuple):
    """An answer that was given up after its first `tokens` tokens (0: the whole), and the expert that took over.

    `certainty`: the probability that the `first` expert's answer is right, by its tokens. `expected`: score of the
    `second` one. `wasted`: the share of the first one's cost that was spent.
    """

    first: str
    second: str
    certainty: float
    expected: float
    tokens: int
    wasted: float


@dataclass(frozen=True, slots=True)
class Kept:
    """The expert that last answered a conversation, the category for which it was chosen, and its draw if any."""

    expert: str
    category: str | None
    draw: Exploration | None = None


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """The client's options; None means the artifact's default."""

    expert: str | None = None
    objective: str | None = None
    allow: frozenset[str] | None = None
    max_active_params_b: float | None = None
    session: str | None = None
    kept: Kept | None = None
    min_confidence: float | None = None
    priority: Priority = "normal"
    key: str | None = None  # name of the client's key
    draw: float | None = None  # in [0, 1), for exploring; None: nothing is drawn


class RankedExpert(NamedTuple):
    """One entry of a decision's ranking.

    `excluded`: why it cannot be chosen, or None. `doubt`: why it is ranked after experts without a doubt, or None.
    `expected_score` is in [0, 1]. It, `active_params_b` and `value` are None for an expert that the router was not
    trained on; `expected_score` and `value` also if nothing was scored.
    """

    expert: str
    expected_score: float | None
    active_params_b: float | None
    value: float | None
    residency: Residency | None
    predicted_wait_seconds: float | None
    excluded: str | None
    doubt: str | None = None


class GateReading(NamedTuple):
    """The gate's reading: similarity to the nearest prototypes, the threshold, and whether the prompt is inside."""

    similarity: float | None
    threshold: float | None
    inside: bool | None


class BudgetReading(NamedTuple):
    """A budget's target and the mean cost of the last answered requests, and the multiplier: score per unit of cost.

    The unit is billions of active parameters or, for a budget on price, price per million tokens.
    """

    target: float | None
    mean: float | None
    multiplier: float


class Costs(NamedTuple):
    """What each expert costs, and the best single expert, which would answer everything without a router.

    `unit`: billions of active parameters, or price per million tokens. An expert of unknown cost is missing in `of`.
    """

    unit: str
    best_single: str
    of: Mapping[str, float]


class ResidentTrade(NamedTuple):
    """The score given up by choosing a loaded expert, and the wait saved."""

    score_lost: float = 0.0
    wait_saved_seconds: float = 0.0


class Shadow(NamedTuple):
    """What another router would have chosen."""

    router_version: str
    expert: str
    category: str | None


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """What the router chose for one request, and why.

    `reason` names the last step that changed the choice. `mapped`: the expert of the objective's stored mapping.
    `mixed`: another expert, because of other categories' probabilities or corrections, or because the mapped one cannot
    answer. `budget`: the live multiplier chose otherwise than the stored one. `route`: a pin or an edited line of the
    mapping. `explored`: a draw that took another expert than usual. `handed_over`: another expert's answer was unsure.

    `category` is `general` if the prompt is outside the gate or the classifier is unsure. `confidence` is the
    calibrated probability of the likeliest category in any case. Both are None for an expert requested by name.
    `ranking` starts with the chosen expert; the next one without `excluded` is its fallback.
    """

    decision_id: str
    router_version: str
    objective: str
    category: str | None
    confidence: float | None
    probabilities: dict[str, float]
    expert: str
    reason: Reason
    ranking: tuple[RankedExpert, ...]
    gate: GateReading
    budget: BudgetReading
    resident: ResidentTrade
    routing_ms: float
    exploration: Exploration | None = None
    shadow: Shadow | None = None
    costs: Costs | None = None  # None if the router knows no costs or no scores, or the expert was requested by name
    handovers: tuple[HandedOver, ...] = ()  # of this request, oldest first

    @property
    def cost(self) -> float | None:
        """The expert's cost with that of starts that were handed over, in `costs.unit`; None if unknown."""
        if self.costs is None or (own := self.costs.of.get(self.expert)) is None:
            return None
        return own + self.wasted(self.costs.of)

    @property
    def saved(self) -> float | None:
        """What the answer costs less than the best single expert's; below 0 if it costs more."""
        if self.costs is None or (cost := self.cost) is None:
            return None
        return self.costs.of[self.costs.best_single] - cost

    def wasted(self, costs: Mapping[str, float]) -> float:
        """What the starts that were handed over cost."""
        return sum([one.wasted * costs.get(one.first, 0.0) for one in self.handovers]) if self.handovers else 0.0

    @property
    def has_another(self) -> bool:
        """True if another expert can take this request."""
        return any(one.excluded is None for one in self.ranking[1:])

    def without_first(self, why: str) -> RoutingDecision:
        """The decision for the next expert of the ranking; the chosen one moves to the end with the reason."""
        first, *rest = self.ranking
        assert self.has_another, "another expert can take the request"
        return replace(self, expert=rest[0].expert, reason="fallback", ranking=(*rest, first._replace(excluded=why)))

    def as_json(self) -> dict[str, Any]:
        """The decision as plain values; the same in dry run, log, events and page."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "probabilities": dict(self.probabilities),
            "ranking": [one._asdict() for one in self.ranking],
            "gate": self.gate._asdict(),
            "budget": self.budget._asdict(),
            "resident": self.resident._asdict(),
            "exploration": self.exploration and self.exploration._asdict(),
            "shadow": self.shadow and self.shadow._asdict(),
            "handovers": [one._asdict() for one in self.handovers],
            "costs": self.costs
            and {
                "unit": self.costs.unit,
                "best_single": self.costs.best_single,
                "cost": self.cost,
                "saved": self.saved,
            },
        }
