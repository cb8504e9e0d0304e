"""What experts can take, as far as it is known, and why one cannot take a request. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from coe_server.config.types import MODALITIES, Modality
from coe_server.routing.conversation import Conversation, Endpoint
from coe_server.routing.decision import Availability, RouteOptions

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
    return over_cap(active_params_b, options) or missing_ability(
        capabilities, capabilities.context_tokens, conversation
    )


def over_cap(active_params_b: float | None, options: RouteOptions) -> str | None:
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


def missing_ability(capabilities: Capabilities, limit: int | None, conversation: Conversation) -> str | None:
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


def doubt_of(limit: int | None, conversation: Conversation) -> str | None:
    """Why the request may exceed this expert's context, so that others come first; None if it likely fits."""
    if limit is None or conversation.likely_tokens <= limit:
        return None
    return f"holds {limit} tokens and the request needs about {conversation.likely_tokens}"
