"""Step two: the experts that can take a request, the reasons against the others, and the choice. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from coe_server.config.types import MODALITIES, Modality
from coe_server.errors import CoeError, ExpertUnavailable, NoCapableExpert, RequestError
from coe_server.routing.conversation import Conversation, Endpoint
from coe_server.routing.decision import (
    Availability,
    Exploration,
    Kept,
    RankedExpert,
    Reason,
    ResidentTrade,
    RouteOptions,
)

TIE_DECIMALS = 9  # values equal to this many decimals are ties, as in training
WORTH_LEAVING = 0.03  # expected score: another expert must read the whole conversation and may have to be loaded


class Candidate(NamedTuple):
    """One expert as a possible choice.

    `obstacle`: why it cannot take the request. `absence`: why it is unavailable now. `doubt`: why it may fail. `cost`
    is in the objective's unit. Corrections may move `expected_score` slightly outside [0, 1]. An expert without
    `availability` is not served here.
    """

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
        name, score, size, value, stopped_by, where, missing, _, doubt = self
        excluded = stopped_by or missing
        return RankedExpert(
            name,
            None if score is None else min(max(score, 0.0), 1.0),
            size,
            value,
            where.residency if where is not None else None,
            where.predicted_wait_seconds if where is not None else None,
            excluded,
            None if excluded else doubt,
        )


class Terms(NamedTuple):
    """An expert's `expected_score`, `value` and `cost` under an objective, and why it is `forbidden` (or None)."""

    expected_score: float | None = None
    value: float | None = None
    cost: float = 0.0
    forbidden: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen expert, the last step that changed the choice, the trade for residency, and the draw if any."""

    expert: Candidate
    reason: Reason
    trade: ResidentTrade = field(default_factory=ResidentTrade)
    exploration: Exploration | None = None


NO_TERMS = Terms()


def candidate(expert: Profile, request: Request, terms: Terms = NO_TERMS) -> Candidate:
    """The expert with the reasons against choosing it, by the request and by its present state."""
    able, conversation, options = expert.capabilities, request.conversation, request.options
    name, size = expert.name, expert.active_params_b
    score, value, cost, stopped_by = terms
    where = request.availability.get(name)
    if where is not None and where.able is not None:
        able = able.over(where.able)
    limit = able.context_tokens if where is None else shorter(able.context_tokens, where.longest_tokens)
    if not is_allowed(name, options):
        stopped_by = NOT_ALLOWED  # takes precedence: other reasons are only for clients that may use the expert
    elif stopped_by is None:
        stopped_by = _over_cap(size, options) or _missing_ability(able, limit, conversation)
    return Candidate(name, score, size, value, stopped_by, where, absence(where), cost, _doubt(limit, conversation))


def requested(expert: Profile, request: Request) -> Candidate:
    """The expert that the request names. The request's length is not checked: the engine counts tokens exactly.

    Raises NoCapableExpert or ExpertUnavailable with what excludes it.
    """
    found = candidate(expert, request._replace(conversation=request.conversation.of_any_length()))
    if found.excluded is not None:
        raise no_expert([found])
    return found


def stay(candidates: Sequence[Candidate], kept: Kept | None) -> Choice | None:
    """The conversation's expert, if it can take this request; one in doubt only if all others are in doubt."""
    if kept is None:
        return None
    found = choose_named(_likeliest(candidates), kept.expert, "sticky")
    return found if found is None else replace(found, exploration=kept.draw)


def is_worth_leaving(candidates: Sequence[Candidate], chosen: Choice) -> bool:
    """True if another expert is so much better for this request that the conversation should change to it."""
    here = next(_value(one) for one in candidates if one.name == chosen.expert.name)
    return any(_value(one) - here >= WORTH_LEAVING for one in _likeliest(candidates))


def ordered(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best value first; ties: the cheaper expert, then by name. Experts in doubt follow, then excluded ones."""
    return sorted(candidates, key=_place)


def ordered_by(candidates: Iterable[Candidate], places: Mapping[str, int]) -> list[Candidate]:
    """As `ordered`, but first by the configured order: `places` by expert, smallest first."""
    last = len(places)
    return sorted(candidates, key=lambda one: (_distance(one), places.get(one.name, last), *_place(one)[1:]))


def eligible(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that are not excluded; those in doubt only if there are no others. `candidates` are `ordered`.

    Raises NoCapableExpert with each obstacle, or ExpertUnavailable if absence is the only reason.
    """
    free = _likeliest(candidates)
    if not free:
        raise no_expert(candidates)
    return free


def best_at(free: Sequence[Candidate], multiplier: float) -> Candidate:
    """The candidate with the best value at `multiplier`, which may differ from that of the order."""

    def place(one: Candidate) -> tuple[float, float, str]:
        return -round((one.expected_score or 0.0) - multiplier * one.cost, TIE_DECIMALS), one.cost, one.name

    return min(free, key=place)


def choose_named(free: Sequence[Candidate], name: str, reason: Reason) -> Choice | None:
    """The choice of the expert named by a mapping or a pin; None if it is not eligible."""
    return next((Choice(one, reason) for one in free if one.name == name), None)


def take_resident(choice: Choice, free: Sequence[Candidate], tolerance: float) -> Choice:
    """Replace the choice by a loaded expert, if its value is at most `tolerance` lower and it saves waiting.

    A remote choice needs no load, and a long queue at the loaded expert would save no time.
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
    """The chosen expert, then the others in order."""
    rest = [one for one in candidates if one is not choice.expert]
    return tuple(one.ranked() for one in (choice.expert, *rest))


def not_routed(conversation: Conversation) -> RequestError:
    """The error for audio or images that no rule routes: a classifier of texts knows nothing about them."""
    return RequestError(
        f"{conversation.path} is routed only by a route with this path in match.path; set `model` to an expert", "model"
    )


def no_expert(candidates: Sequence[Candidate]) -> CoeError:
    """The error if no expert can take this request. An expert that is not served never counts as "unavailable".

    Experts that the request may not use are not named.
    """
    candidates = [one for one in candidates if one.obstacle != NOT_ALLOWED]
    served = [one for one in candidates if one.availability is not None]
    absent = [one for one in served if one.obstacle is None]
    named = (f"{one.name}: {one.excluded}" for one in absent or served or candidates)
    reasons = "; ".join(named) or "the router knows none of the experts that it may use"
    if absent:
        returns = [one.availability.returns_seconds for one in absent if one.availability is not None]
        soonest = min((seconds for seconds in returns if seconds is not None), default=1.0)
        return ExpertUnavailable(f"no expert that could take this request is available now ({reasons})", soonest)
    return NoCapableExpert(f"no expert can take this request ({reasons})")


def _place(one: Candidate) -> tuple[int, float, float, str]:
    return _distance(one), -round(one.value or 0.0, TIE_DECIMALS), one.cost, one.name


def _distance(candidate: Candidate) -> int:
    """0: likely able, 1: in doubt, 2: excluded."""
    if (candidate.obstacle or candidate.absence) is not None:
        return 2
    return 0 if candidate.doubt is None else 1


def _likeliest(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates without a doubt or, if there are none, those in doubt; never excluded ones."""
    nearest = _distance(candidates[0]) if candidates else 2
    return [one for one in candidates if _distance(one) == nearest] if nearest < 2 else []


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
    """An expert's capabilities. None, or an unlisted modality, means unknown and excludes nothing."""

    context_tokens: int | None = None
    modalities: Mapping[Modality, bool] = field(default_factory=dict)
    tools: bool | None = None
    endpoints: frozenset[Endpoint] | None = None

    def over(self, other: Capabilities) -> Capabilities:
        """These capabilities, with unknown ones filled in from `other`."""
        return Capabilities(
            _first(self.context_tokens, other.context_tokens),
            {**other.modalities, **self.modalities},
            _first(self.tools, other.tools),
            _first(self.endpoints, other.endpoints),
        )


UNKNOWN = Capabilities()
NOT_ALLOWED = "not in the request's allow list"


@dataclass(frozen=True, slots=True)
class Profile:
    """The constant properties of an expert; `active_params_b` is None if unknown in training."""

    name: str
    active_params_b: float | None = None
    capabilities: Capabilities = UNKNOWN


class Request(NamedTuple):
    """The arguments of one call of `route`."""

    conversation: Conversation
    options: RouteOptions
    availability: Mapping[str, Availability]


def known_modalities(vision: bool | None, listed: Collection[Modality] | None) -> dict[Modality, bool]:
    """Known modalities, from the full list if given, else from the `vision` flag."""
    if listed is not None:
        return {modality: modality in listed for modality in MODALITIES}
    return {} if vision is None else {"image": vision}


def is_allowed(name: str, options: RouteOptions) -> bool:
    """True if the request and its key may use this expert."""
    return options.allow is None or name in options.allow


def obstacle(
    name: str,
    active_params_b: float | None,
    capabilities: Capabilities,
    conversation: Conversation,
    options: RouteOptions,
) -> str | None:
    """Why this expert cannot take this request in any state; None if it can."""
    if not is_allowed(name, options):
        return NOT_ALLOWED
    return _over_cap(active_params_b, options) or _missing_ability(
        capabilities, capabilities.context_tokens, conversation
    )


def _over_cap(active_params_b: float | None, options: RouteOptions) -> str | None:
    cap = options.max_active_params_b
    if cap is None:
        return None
    if active_params_b is None:
        return f"its active parameters are unknown and the request's cap is {cap:g} B"
    if active_params_b > cap:
        return f"{active_params_b:g} B active parameters are over the request's cap of {cap:g} B"
    return None


def absence(availability: Availability | None) -> str | None:
    """Why this expert is unavailable now; None if it is available."""
    return "not served here" if availability is None else availability.unavailable


def _first(ours: Known | None, theirs: Known | None) -> Known | None:
    return theirs if ours is None else ours


def shorter(one: int | None, other: int | None) -> int | None:
    """Of two limits in tokens, each unknown where it is None."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _missing_ability(capabilities: Capabilities, limit: int | None, conversation: Conversation) -> str | None:
    if capabilities.endpoints is not None and conversation.endpoint not in capabilities.endpoints:
        return f"does not serve {conversation.endpoint} requests"
    if limit is not None and conversation.least_tokens > limit:
        return f"holds {limit} tokens and the request needs at least about {conversation.least_tokens}"
    for modality in MODALITIES if conversation.modalities else ():
        if modality in conversation.modalities and capabilities.modalities.get(modality) is False:
            return f"cannot {_CANNOT[modality]}"
    if conversation.has_tools and capabilities.tools is False:
        return "cannot call tools"
    return None


def _doubt(limit: int | None, conversation: Conversation) -> str | None:
    """Why the request may exceed this expert's context, so that others come first; None if it likely fits."""
    if limit is None or conversation.likely_tokens <= limit:
        return None
    return f"holds {limit} tokens and the request needs about {conversation.likely_tokens}"
