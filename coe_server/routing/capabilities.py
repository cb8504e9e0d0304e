"""Can this expert take this request? The first obstacle as a sentence, or None.

Knows nothing of categories, scores or where weights are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

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
