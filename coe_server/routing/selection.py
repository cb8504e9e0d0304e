"""Step two: of the experts that can take a request, the one worth most. Pure.

Knows nothing of text, features or files.

Can this expert take this request? The first obstacle as a sentence, or None.

Knows nothing of categories, scores or where weights are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from coe_server.config.types import MODALITIES, Modality
from coe_server.errors import CoeError, ExpertUnavailable, NoCapableExpert
from coe_server.routing.conversation import Conversation, Endpoint
from coe_server.routing.decision import Availability, Kept, RankedExpert, Reason, ResidentTrade, RouteOptions

TIE_DECIMALS = 9  # values that are equal to so many differ by rounding, as training has it
WORTH_LEAVING = 0.03  # of expected score: a new expert reads the whole conversation again, and may have to be loaded


class Candidate(NamedTuple):
    """One expert; corrections may lead `expected_score` a little outside of [0, 1]; `cost` is in the objective's unit,
    `obstacle` says why it cannot take the request, `absence` why it cannot be had now, `doubt` why it may prove unable;
    without an `availability` it is not served here."""

    name: str
    expected_score: float | None
    active_params_b: float | None
    value: float | None
    obstacle: str | None = None
    availability: Availability | None = None
    absence: str | None = None
    cost: float = 0.0
    doubt: str | None = None

    @property
    def excluded(self) -> str | None:
        return self.obstacle or self.absence

    def ranked(self) -> RankedExpert:
        where, score = self.availability, self.expected_score
        return RankedExpert(
            self.name,
            None if score is None else min(max(score, 0.0), 1.0),
            self.active_params_b,
            self.value,
            where.residency if where else None,
            where.predicted_wait_seconds if where else None,
            self.excluded,
            None if self.excluded else self.doubt,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The expert taken, the last step that changed the choice, and what residency traded."""

    expert: Candidate
    reason: Reason
    trade: ResidentTrade = field(default_factory=ResidentTrade)


def stay(candidates: Sequence[Candidate], kept: Kept | None) -> Choice | None:
    """The expert that the conversation has, if it can take this request too; in doubt if no other is without."""
    if kept is None:
        return None
    return choose_named(_likeliest(candidates), kept.expert, "sticky")


def is_worth_leaving(candidates: Sequence[Candidate], chosen: Choice) -> bool:
    """Whether somebody is so much better at what is asked now that a conversation should change its expert."""
    here = next(_value(one) for one in candidates if one.name == chosen.expert.name)
    return any(_value(one) - here >= WORTH_LEAVING for one in _likeliest(candidates))


def ordered(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best value first, ties go to the smaller expert, then by name; in the same order those in doubt, and last those
    excluded."""
    return sorted(candidates, key=lambda one: (_distance(one), -round(_value(one), TIE_DECIMALS), one.cost, one.name))


def eligible(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those not excluded, and without those in doubt unless there is no other.

    Raises NoCapableExpert naming each obstacle, or ExpertUnavailable where only absence is in the way.
    """
    free = _likeliest(candidates)
    if not free:
        raise nobody(candidates)
    return free


def choose_by_value(free: Sequence[Candidate], mapped_reason: Reason) -> Choice:
    """The best value, the first; `budget` if the multiplier changed who that is."""
    without_budget = min(free, key=lambda one: (-round(one.expected_score or 0.0, TIE_DECIMALS), one.cost, one.name))
    return Choice(free[0], mapped_reason if without_budget is free[0] else "budget")


def choose_named(free: Sequence[Candidate], name: str, mapped_reason: Reason) -> Choice | None:
    """The expert a mapping or a pin names, if it is free."""
    return next((Choice(one, mapped_reason) for one in free if one.name == name), None)


def take_resident(choice: Choice, free: Sequence[Candidate], tolerance: float) -> Choice:
    """An expert on the device instead, where it is worth at most `tolerance` less than the choice and saves waiting.

    A remote choice is at hand anyway, and behind a long queue for the one on the device nothing would be saved.
    """
    if tolerance <= 0.0 or _on_device(choice.expert):
        return choice
    least, wait = _value(choice.expert) - tolerance, _wait_seconds(choice.expert)
    sooner = (one for one in free if _on_device(one) and _value(one) >= least and _wait_seconds(one) < wait)
    resident = next(sooner, None)
    if resident is None:
        return choice
    lost = (choice.expert.expected_score or 0.0) - (resident.expected_score or 0.0)
    return Choice(resident, "resident", ResidentTrade(lost, wait - _wait_seconds(resident)))


def ranking(choice: Choice, candidates: Sequence[Candidate]) -> tuple[RankedExpert, ...]:
    """The chosen expert, then the others as they are ordered."""
    rest = [one for one in candidates if one is not choice.expert]
    return tuple(one.ranked() for one in (choice.expert, *rest))


def nobody(candidates: Sequence[Candidate]) -> CoeError:
    """Why no expert takes this request, as the error to raise. An expert that is not served here will not come back.

    Those that the request may not use are not named.
    """
    candidates = [one for one in candidates if one.obstacle != NOT_ALLOWED]
    served = [one for one in candidates if one.availability is not None]
    absent = [one for one in served if one.obstacle is None]
    named = (f"{one.name}: {one.excluded}" for one in absent or served or candidates)
    reasons = "; ".join(named) or "the router knows none of those that it may use"
    if absent:
        returns = [one.availability.returns_seconds for one in absent if one.availability is not None]
        soonest = min((seconds for seconds in returns if seconds is not None), default=1.0)
        return ExpertUnavailable(f"no expert that could take this request can be had now ({reasons})", soonest)
    return NoCapableExpert(f"no expert can take this request ({reasons})")


def _distance(candidate: Candidate) -> int:
    """How far from answering: 0 likely can, 1 in doubt, 2 excluded."""
    return 2 if candidate.excluded is not None else 0 if candidate.doubt is None else 1


def _likeliest(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those not excluded: all without a doubt, or where there is none, all in doubt."""
    nearest = min((_distance(one) for one in candidates), default=2)
    return [one for one in candidates if _distance(one) == nearest < 2]


def _value(candidate: Candidate) -> float:
    return candidate.value if candidate.value is not None else 0.0


def _on_device(candidate: Candidate) -> bool:
    return candidate.availability is not None and candidate.availability.residency == "device"


def _wait_seconds(candidate: Candidate) -> float:
    return candidate.availability.predicted_wait_seconds if candidate.availability else 0.0


_CANNOT: dict[Modality, str] = {
    "image": "see images",
    "audio": "take audio",
    "video": "take video",
    "file": "take files",
}

Known = TypeVar("Known")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an expert can take; what is None, or missing among the modalities, is unknown and not held against it."""

    context_tokens: int | None = None
    modalities: Mapping[Modality, bool] = field(default_factory=dict)
    tools: bool | None = None
    endpoints: frozenset[Endpoint] | None = None

    def over(self, other: Capabilities) -> Capabilities:
        """What is known here, and what `other` knows of the rest."""
        return Capabilities(
            _first(self.context_tokens, other.context_tokens),
            {**other.modalities, **self.modalities},
            _first(self.tools, other.tools),
            _first(self.endpoints, other.endpoints),
        )


UNKNOWN = Capabilities()
NOT_ALLOWED = "not in the request's allow list"


def known_modalities(vision: bool | None, listed: Collection[Modality] | None) -> dict[Modality, bool]:
    """What is known where an expert is said to see images or not, or all that it takes is listed."""
    if listed is not None:
        return {modality: modality in listed for modality in MODALITIES}
    return {} if vision is None else {"image": vision}


def is_allowed(name: str, options: RouteOptions) -> bool:
    """May the request, or the key that it came with, use this expert?"""
    return options.allow is None or name in options.allow


def obstacle(
    name: str,
    active_params_b: float | None,
    capabilities: Capabilities,
    conversation: Conversation,
    options: RouteOptions,
) -> str | None:
    """Why this expert cannot take this request, whatever its state; None if it can."""
    if not is_allowed(name, options):
        return NOT_ALLOWED
    cap = options.max_active_params_b
    if cap is not None and active_params_b is None:
        return f"its active parameters are unknown and the request's cap is {cap:g} B"
    if cap is not None and active_params_b is not None and active_params_b > cap:
        return f"{active_params_b:g} B active parameters are over the request's cap of {cap:g} B"
    return _missing_ability(capabilities, conversation)


def absence(availability: Availability | None) -> str | None:
    """Why this expert cannot be had now; None if it can."""
    return "not served here" if availability is None else availability.unavailable


def _first(ours: Known | None, theirs: Known | None) -> Known | None:
    return theirs if ours is None else ours


def _missing_ability(capabilities: Capabilities, conversation: Conversation) -> str | None:
    if capabilities.endpoints is not None and conversation.endpoint not in capabilities.endpoints:
        return f"does not serve {conversation.endpoint} requests"
    limit = capabilities.context_tokens
    if limit is not None and conversation.least_tokens > limit:
        return f"holds {limit} tokens and the request needs at least about {conversation.least_tokens}"
    for modality in MODALITIES:
        if modality in conversation.modalities and capabilities.modalities.get(modality) is False:
            return f"cannot {_CANNOT[modality]}"
    if conversation.has_tools and capabilities.tools is False:
        return "cannot call tools"
    return None


def doubt(capabilities: Capabilities, conversation: Conversation) -> str | None:
    """Why this expert may turn out to be too small, and others come first; None if it likely has the room."""
    limit = capabilities.context_tokens
    if limit is None or conversation.likely_tokens <= limit:
        return None
    return f"holds {limit} tokens and the request needs about {conversation.likely_tokens}"
