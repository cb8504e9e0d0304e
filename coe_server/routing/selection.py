"""Step two: the candidates for a request in their order, and the choice among them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from coe_server.errors import CoeError, ExpertUnavailable, NoCapableExpert, RequestError
from coe_server.routing.capabilities import (
    NOT_ALLOWED,
    Profile,
    Request,
    absence,
    doubt_of,
    is_allowed,
    missing_ability,
    over_cap,
    shorter,
)
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, Exploration, Kept, RankedExpert, Reason, ResidentTrade

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
        stopped_by = over_cap(size, options) or missing_ability(able, limit, conversation)
    return Candidate(name, score, size, value, stopped_by, where, absence(where), cost, doubt_of(limit, conversation))


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
