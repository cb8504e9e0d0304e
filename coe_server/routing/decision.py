"""The values a decision travels in: what is asked, what is known of each expert, what was chosen and why.

Knows nothing of how the choice is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

Residency = Literal["device", "host", "disk", "remote"]
Priority = Literal["high", "normal", "batch"]
Reason = Literal[
    "requested", "sticky", "route", "mapped", "mixed", "out_of_domain", "general", "budget", "resident", "fallback"
]
REASONS: tuple[Reason, ...] = get_args(Reason)
GENERAL = "general"


class Availability(NamedTuple):
    """Where an expert's weights are now, how long a lease would take, and why it is unavailable (or None).

    `returns_seconds`: until it may be available again, where that is known. `longest_tokens`: of a request with its
    answer, as its engine told when it started.
    """

    residency: Residency
    predicted_wait_seconds: float
    unavailable: str | None = None
    returns_seconds: float | None = None
    longest_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """The expert that answered a conversation last, and the category it was chosen for."""

    expert: str
    category: str | None


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """The caller's options; None leaves the choice to the artifact."""

    expert: str | None = None
    objective: str | None = None
    allow: frozenset[str] | None = None
    max_active_params_b: float | None = None
    session: str | None = None
    kept: Kept | None = None
    min_confidence: float | None = None
    priority: Priority = "normal"
    key: str | None = None  # name of the caller's key


class RankedExpert(NamedTuple):
    """One expert's place in a decision; `excluded` is the sentence that ruled it out, or None. `doubt` says why one
    that is not ruled out comes behind those without a doubt.

    `expected_score`, in [0, 1], `active_params_b` and `value` are None for an expert the router was not trained on
    (it can be asked for by name); the first and last also where nothing was scored.
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
    """Is the prompt like the training data? Similarity to the nearest prototypes, and the least that counts."""

    similarity: float | None
    threshold: float | None
    inside: bool | None


class BudgetReading(NamedTuple):
    """Target and mean of the last answered requests, in billions of active parameters or, where the budget is on it,
    in price per million tokens; the multiplier is the score that one unit must buy."""

    target: float | None
    mean: float | None
    multiplier: float


class ResidentTrade(NamedTuple):
    """What taking an expert already on the device gave up, and the wait it saved."""

    score_lost: float = 0.0
    wait_saved_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """What the router chose for one request, and why.

    `reason` names the last step that changed the choice. `mapped`: the objective's stored mapping of this category
    names the expert. `mixed`: probabilities of several categories, or corrections, led to another expert, or the mapped
    one cannot answer. `budget`: the live multiplier changed what the stored one chooses. `route`: a person gave the
    category to this expert (a pin, a changed line of the mapping).

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

    @property
    def has_another(self) -> bool:
        """Whether another expert can take this request."""
        return any(one.excluded is None for one in self.ranking[1:])

    def without_first(self, why: str) -> RoutingDecision:
        """The next in the ranking instead of the chosen expert, which goes to the end with the reason."""
        first, *rest = self.ranking
        assert self.has_another, "another expert can take the request"
        return replace(self, expert=rest[0].expert, reason="fallback", ranking=(*rest, first._replace(excluded=why)))

    def as_json(self) -> dict[str, Any]:
        """The decision as plain values, the same in dry run, log, events and page."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "probabilities": dict(self.probabilities),
            "ranking": [one._asdict() for one in self.ranking],
            "gate": self.gate._asdict(),
            "budget": self.budget._asdict(),
            "resident": self.resident._asdict(),
        }
